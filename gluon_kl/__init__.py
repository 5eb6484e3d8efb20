"""Kullback-Leibler divergence losses for Apache MXNet Gluon."""

__version__ = "0.3.0"

from gluon_kl import _mxnet  # noqa: F401  isort: skip  (comes first, so that MXNet can be imported here)
from gluon_kl import metric, native
from gluon_kl.bernoulli import BernoulliKLLoss
from gluon_kl.distillation import DistillationLoss
from gluon_kl.gaussian import GaussianKLLoss
from gluon_kl.pair import JSDivLoss, KLDivLoss, ReverseKLDivLoss
from gluon_kl.top_k import TopKDistillationLoss

native.is_available()  # loads the operator, so that graphs that contain it can be read

__all__ = ["BernoulliKLLoss", "DistillationLoss", "GaussianKLLoss", "JSDivLoss", "KLDivLoss", "ReverseKLDivLoss",
           "TopKDistillationLoss", "metric"]
