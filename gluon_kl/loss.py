"""The module of the losses of pairs in older versions, whose pickles name it."""

from gluon_kl.pair import JSDivLoss, KLDivLoss, PairLoss, ReverseKLDivLoss

__all__ = ["JSDivLoss", "KLDivLoss", "PairLoss", "ReverseKLDivLoss"]
