"""The PyTorch core of the workflow. Imports point one way:

scripts -> training, evaluation -> methods -> models, optim, augment, data -> recipe
"""
