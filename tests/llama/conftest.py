"""What tests of the house model need: as many threads as each process has cores."""

import torch

torch.set_num_threads(1)  # two processes with two threads each wait for one another on two cores
