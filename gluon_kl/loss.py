"""Where the losses of pairs stood until 0.2, whose pickles name this module."""

from gluon_kl.pair import JSDivLoss, KLDivLoss, PairLoss, ReverseKLDivLoss

__all__ = ["JSDivLoss", "KLDivLoss", "PairLoss", "ReverseKLDivLoss"]
