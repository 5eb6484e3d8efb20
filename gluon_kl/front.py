"""The base classes for the Gluon that is installed: the one place that distinguishes Gluon 1 from Gluon 2."""

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
