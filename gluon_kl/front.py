"""The front door of the Gluon that is here: the one place where the two are told apart."""

from gluon_kl import _mxnet

if _mxnet.GLUON_2:
    from gluon_kl.gluon2 import CheckedLoss, Metric, alias, check_label_shapes, register
else:
    from gluon_kl.gluon1 import (
        CheckedLoss,
        Metric,
        alias,
        check_label_shapes,
        register,
    )

__all__ = ["CheckedLoss", "Metric", "alias", "check_label_shapes", "register"]
