"""`python -m hf_lomdm`, the same as `lomdm`."""

from lomdm_command import main

if __name__ == "__main__":
    main()
