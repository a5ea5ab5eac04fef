"""Where LoMDM differs from what a peer's suite expects: peer -> test pattern -> reason.

A test is named `Class::test`, and a class of ours is a system of the family or a sampler
(suite_*.py).
"""

NO_GAUSSIAN_NOISE = "a text is masked, not scaled and mixed with Gaussian noise"
EXPECTED: dict[str, dict[str, str]] = {
    "transformers": {
        "*::test_model_weights_reload_no_missing_tied_weights": (
            "a file without weights is refused, which the suite loads to see that what is missing "
            "is reported"
        ),
    },
    "diffusers": {
        "Scheduler*::test_add_noise_device": NO_GAUSSIAN_NOISE,
        "Scheduler*::test_scheduler_public_api": NO_GAUSSIAN_NOISE,
        "Scheduler*::test_trained_betas": NO_GAUSSIAN_NOISE,
        "Scheduler*::test_from_pretrained": (
            "the suite takes out of the configuration a list of the settings that were not passed; "
            "ours keeps none, so that none of them is dropped"
        ),
        "Scheduler*::test_compatibles": "no scheduler of diffusers reveals positions by rates",
        "Pipeline*::test_callback_inputs": (
            "callbacks get sample, order, rates and revealed; there are no latents"
        ),
        "Pipeline*::test_inference_batch_single_identical": (
            "a row is padded to the width of its batch, which the suite compares whole; that its "
            "tokens are the same is under test here"
        ),
        "Pipeline*::test_save_load_local": (
            "our loader reports no loading of components to diffusers' log, which the suite "
            "searches; that what is loaded writes the same is in test_save_load_optional_components"
        ),
        "Pipeline*::test_*variant*": (
            "one precision is written, in safetensors, and no variant is looked for"
        ),
    },
    "peft": {
        "TestLoMDM::*PrefixTuning*": (
            "prefixes are keys and values, which a model without blocks does not take, since every "
            "reveal changes all; prompts can be tuned"
        ),
    },
}
