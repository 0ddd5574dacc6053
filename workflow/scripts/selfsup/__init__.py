"""The PyTorch core of the workflow. Imports point one way:

scripts -> training, evaluation -> methods -> models, optim, augment, data -> recipe
"""

import os

# How long an idle OpenMP thread spins before it sleeps; read when torch loads. The default, 300,000 turns, lets threads
# that wait burn the cores that the others need as soon as a neighbour uses one: two demos at once on two cores ran at
# 35 to 190 images/s each, with 1,000 turns at 320; alone it costs less than the noise of 10 %.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
