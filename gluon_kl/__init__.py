"""Kullback-Leibler divergence losses for Apache MXNet Gluon."""

from gluon_kl import metric, native
from gluon_kl.bernoulli import BernoulliKLLoss
from gluon_kl.distillation import DistillationLoss
from gluon_kl.gaussian import GaussianKLLoss
from gluon_kl.loss import JSDivLoss, KLDivLoss, ReverseKLDivLoss

native.is_available()  # loads the operator, so that graphs that hold it can be read

__version__ = "0.1.0"
__all__ = ["BernoulliKLLoss", "DistillationLoss", "GaussianKLLoss", "JSDivLoss", "KLDivLoss", "ReverseKLDivLoss",
           "metric"]
