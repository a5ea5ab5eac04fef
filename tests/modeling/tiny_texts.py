"""Two partly masked texts for the tiny model, the second one padded."""

import torch

IDS = torch.tensor([[1, 3, 10, 5, 10, 7], [1, 10, 4, 2, 0, 0]])
PADDING = (IDS != 0).long()
