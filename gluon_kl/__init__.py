"""Kullback-Leibler divergence losses for Apache MXNet Gluon."""

from gluon_kl.loss import KLDivLoss

__version__ = "0.1.0"
__all__ = ["KLDivLoss"]
