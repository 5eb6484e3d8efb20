"""Break the source on purpose, one line at a time, and name the test that fails.

    python tests/mutations.py            # every mutation, two at a time; exit code 1 if one survives
    python tests/mutations.py epsilon    # those whose description contains the word

Each mutation is applied to a copy of the package, on which tests run on both paths until the first failure: first
those that probably notice, then the rest. Where it is in C++, what includes the file is compiled anew and linked with
what does not. Those that only MXNet 2 can notice are tried by a Python that has it. The table below names what is
broken, the file, the source, what it becomes, and perhaps the test (a file, or a node in it) that should notice.
"""

import contextlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gluon_kl
from gluon_kl import _mxnet

ROOT = Path(__file__).resolve().parent.parent
NATIVE = Path("gluon_kl", "native")
# The tests that catch most mutations of a file; faults that users reported have their tests in test_reports.py.
NOTICES = {"gaussian.py": ["test_gaussian.py"], "bernoulli.py": ["test_bernoulli.py"],
           "distillation.py": ["test_distillation.py"], "diagnostics.py": ["test_diagnostics.py"],
           "metric.py": ["test_metric.py"], "_mxnet.py": ["test_mxnet.py"], "_lend.py": ["test_mxnet.py"],
           "mxnet_private.py": ["test_private.py"], "graphs.py": ["test_graphs.py", "test_modes.py"],
           "native/convert.h": ["test_reports.py::test_narrow_gradients", "test_native.py"]}
SUITE = ["test_cases.py", "test_loss.py", "test_modes.py", "test_family.py", "test_gradients.py",
         "test_distillation.py", "test_gaussian.py", "test_bernoulli.py", "test_metric.py", "test_diagnostics.py",
         "test_properties.py", "test_programs.py", "test_native.py"]
COMPILED = ["test_cases.py", "test_native.py", "test_gradients.py", "test_gaussian.py", "test_distillation.py",
            "test_family.py", "test_programs.py", "test_loss.py", "test_bernoulli.py", "test_modes.py"]
ON_MXNET_2 = ["test_gluon2.py", "test_gluon2_programs.py", "test_modes.py::test_every_way_at_the_ends"]
OVER_OPERATORS = ["operators.py", "lifting.py", "compact.py"]  # what the fused operator does without
MUTATIONS = [  # what breaks, file, the source, what it becomes
    ("mean instead of sum", "operators.py", "if mean:\n        sums", "if not mean:\n        sums"),
    ("mean of Gaussians instead of sum", "operators.py", "if mean:\n        shares", "if not mean:\n        shares"),
    ("the label's logarithm is dropped", "operators.py", "F.where(label, F.log(label) - log_pred, label)",
     "F.where(label, 0 - log_pred, label)"),
    ("0 * inf at a masked score", "operators.py", "F.where(size + is_finite(log_pred), log_pred, size)",
     "log_pred", "test_distillation.py::test_label_gradient_under_a_masked_score"),
    ("epsilon is ignored", "operators.py", "least = max(epsilon / math.e, _TINY)", "least = epsilon = 1e-12 / math.e",
     "test_reports.py::test_kl_at_every_gap"),
    ("a tiny epsilon is cut off", "operators.py", "if least > epsilon / math.e:", "if False:", "test_loss.py"),
    ("epsilon biases every label", "operators.py", "F.log(fixed + absent * least)", "F.log(fixed + least)"),
    ("label gradient at a masked score", "operators.py", "log_pred - log_label, absent)",
     "log_pred - log_label, label)", "test_reports.py::test_kl_at_every_gap"),
    ("label gradient at a zero", "operators.py", "F.where(fixed + is_finite(log_pred),", "F.where(fixed,",
     "test_reports.py::test_kl_at_every_gap"),
    ("a trace with one category", "worlds.py", "if self._single is False else x", "if False else x",
     "test_gluon2_programs.py"),
    ("a trace with one axis", "worlds.py", "if self._apart else part", "if False else part",
     "test_gluon2_programs.py"),
    ("shapes that differ in a trace of one dtype", "lifting.py", "mxnet_private.same_shape(F, x, first) if same else x",
     "x", "test_gluon2_programs.py::test_shapes_that_differ_in_a_later_call"),
    ("a trace in float16", "worlds.py", 'dtypes not in ({"float32"}, {"float64"})', "len(dtypes) > 1",
     "test_gluon2_programs.py::test_dtypes_that_change"),
    ("a trace serves another dtype", "lifting.py", "F.cast(zeros[0], dtype=dtype), *zeros", "*zeros",
     "test_gluon2_programs.py::test_dtypes_that_change"),
    ("a trace fails nowhere", "worlds.py", "return out if self._zero is None else", "return out if True else",
     "test_gluon2_programs.py"),
    ("sums of infinity in float64", "description.py", "world.lifts_to_float32 and not wide", "True",
     "test_modes.py::test_every_way_at_the_ends"),
    ("an exported graph has one dtype", "gluon2.py", '["float16"] + ["float32"]', '["float32"] + ["float32"]',
     "test_gluon2.py::test_export_and_import"),
    ("NaN hides in a row of logits", "operators.py", "F.max(F.BlockGrad(logits), axis=axis, keepdims=True) * 0)",
     "F.zeros_like(F.max(logits, axis=axis, keepdims=True)))", "test_loss.py::test_row_without_a_distribution_is_nan"),
    ("small divergences lose their digits", "operators.py",
     "if both_logits and rows.whole is not False:\n        of_whole",
     "if False:\n        of_whole"),
    ("a 1-D pred in a graph as a whole row", "operators.py", "axis=axis, keepdims=True) > 1",
     "axis=axis, keepdims=True) > 0", "test_modes.py::test_nested_1d"),
    ("difference form over parts of rows", "description.py", "rows = rows._replace(whole=False)\n", "pass\n"),
    ("far terms without q - p", "operators.py", "p * u + excess", "p * u"),
    ("softmax over the last axis only", "operators.py", "out = F.log_softmax(logits, axis=axis)",
     "out = F.log_softmax(logits, axis=-1)"),
    ("batch_axis is taken for 0", "operators.py", "F.Flatten(terms if batch_axis == 0 else",
     "F.Flatten(terms if True else"),
    ("weight 0 lets NaN through", "operators.py", "F.where(mask.rows, F.zeros_like(logits), logits)", "logits",
     "test_cases.py::test_weight_zero_silences_a_row"),
    ("an element of weight 0 counts", "operators.py", "F.where(mask.terms, mask.terms * value, x)", "x"),
    ("no gradient to a weight of 0", "operators.py", "if not (learned and world.gradients[-1]):", "if True:"),
    ("a weight per sample runs along columns", "checks.py", "weight if i == batch_axis else",
     "weight if i == len(shape) - 1 else"),
    ("float16 is not lifted", "worlds.py", '"float64" if own or not self.in_float32 else "float32" for own',
     "self.dtypes[0] for own", "test_reports.py::test_tiny_negative_gradients"),
    ("Gaussians in float32 alone", "description.py", 'not (summed and name in ("mean", "prior_mean"))', "not summed",
     "test_gaussian.py"),
    ("nested graphs do not lift", "worlds.py", "return lifting.lift_unknown(F, inputs, same_shape)",
     "return list(inputs)", "test_reports.py::test_inputs_of_any_dtype_in_a_hybridized_block"),
    ("shapes broadcast", "checks.py", "if shape != other:", "if False:", "test_loss.py"),
    ("one graph for all calls", "graphs.py", "self._graphs.get(key)", "next(iter(self._graphs.values()), None)"),
    ("copies keep their graph", "block.py", '"_own_graphs": None, ', "", "test_modes.py"),
    ("mx.np arrays come back as mx.nd", "base.py", "out.as_np_ndarray() if numpy_kind else out", "out"),
    ("recorded labels get no gradient", "base.py", "key = key._replace(gradients=gradients)",
     "key = key._replace(gradients=(True,) + (False,) * (len(inputs) - 1))"),
    ("a backward pass through the teacher", "base.py",
     "known = [False if name in self.description.no_grad_inputs else follow",
     "known = [None if name in self.description.no_grad_inputs else follow", "test_distillation.py"),
    ("recording marks a label", "autograd.py", "x = mxnet_private.shallow_copy(x) if take", "x = x if take",
     "test_modes.py"),
    ("one dtype for all calls", "base.py", "kind.append((x.shape, x.dtype, place", "kind.append((x.shape, place"),
    ("kinds without an end", "base.py", "if len(self.keys) >= MAX_KEYS:", "if False:",
     "test_modes.py::test_kinds_of_call"),
    ("the mixture's sides are swapped", "operators.py", "terms = p * (of_p * -beta) + q * (of_q * (beta - 1))",
     "terms = p * (of_p * (beta - 1)) + q * (of_q * -beta)"),
    ("gradients shrink with the temperature", "description.py",
     "return (1 - self.hard.share) * self._restored *", "return (1 - self.hard.share) *"),
    ("the teacher learns", "description.py", "F.BlockGrad(given.pop(0))", "given.pop(0)"),
    ("near Gaussians lose a term", "operators.py", "F.square(s) * _excess(s)", "0 * s"),
    ("a Gaussian below 0", "operators.py", "x - F.BlockGrad(F.minimum(x, 0))", "x",
     "test_gaussian.py::test_near_the_prior_digits_stay"),
    ("a sum of Gaussians below 0", "operators.py", "np.minimum(excess, 0)", "np.minimum(excess, -1)"),
    ("sums of Gaussians by what AMP casts", "operators.py",
     "(_dot(squares, shares).as_np_ndarray() + excess.as_np_ndarray()).as_nd_ndarray()",
     "_dot(squares, shares) + excess", "test_programs.py::test_bfloat16"),
    ("a user's graph flattens away what differs", "lifting.py", "mxnet_private.same_shape(F, x, first) for x",
     "F._internal._copy(x) for x"),
    ("sums in a user's graph in float32 alone", "lifting.py", "functools.reduce(operator.mul, corners)", "corners[0]"),
    ("sums in a user's graph have no gradient", "lifting.py", "bridge - F.BlockGrad(bridge)", "bridge - bridge"),
    ("sums in a user's graph count infinity from itself", "lifting.py", "F.cast(F.contrib.sign_ste(x), dtype",
     "F.cast(x, dtype"),
    ("free nats are a ceiling", "description.py", "F.where(out < least,", "F.where(out > least,"),
    # Faults that programs met once.
    ("an infinite scalar", "operators.py", "return x - x == 0", "return x.abs() < math.inf"),
    ("arrays that add up reach the operator bare", "autograd.py", "if marked and take:", "if False:"),
    ("a teacher's gradient is memory as found", "worlds.py", "inputs[name] = F.BlockGrad(inputs[name])", "pass"),
    ("float16 alone is not lifted in a graph", "lifting.py", "F.zeros_like(tied)", "F.zeros_like(first)"),
    ("a graph does not infer the label's shape", "lifting.py",
     'mxnet_private.same_shape(F, F.cast(lifted[i], dtype="float32"), tied)', "tied"),
    ("shapes that differ in a trace", "lifting.py",
     'tied = mxnet_private.same_shape(F, F.cast(lifted[i], dtype="float32"), tied)', "pass",
     "test_gluon2_programs.py::test_shapes_that_differ_in_a_later_call"),
    ("a label in a graph in its own dtype", "lifting.py", "    zeros = F.zeros_like(lifted[0])\n", ""),
    ("a weight in a graph in its own dtype", "lifting.py",
     "zeros = added(zeros, _spread(F, zero, first))", "pass"),
    ("memory of loaders is another place", "base.py", '_LENT = ("cpu_shared", "cpu_pinned")', "_LENT = ()"),
    ("bfloat16 is unknown", "worlds.py", '"bfloat16": "float32", ', ""),
    ("subnormal scalars", "checks.py", "if number and not SMALLEST <= abs(number) <= LARGEST:", "if False:"),
    ("an axis may be a bool", "checks.py", "if isinstance(value, (bool, np.bool_)):\n            raise",
     "if False:\n            raise"),
    ("no rows reach MXNet", "base.py", "if 0 in frame.shape:", "if False:"),
    ("the sides of the reverse are not swapped", "operators.py",
     "return kl_terms(F, label, pred, pred_space=label_space, label_space=pred_space",
     "return kl_terms(F, pred, label, pred_space=pred_space, label_space=label_space"),
    ("the reverse gives pred no gradient", "native/__init__.py", 'words["grad"] = ",".join(grad) or "-"',
     'words["grad"] = "target" if ("form", "reverse_kl") in options else ",".join(grad) or "-"'),
    ("uses of one array are merged", "autograd.py", "with mx.AttrScope(__gluon_kl_use__=name):", "if True:"),
    ("uses are named at random", "mxnet1.py", 'manager.get(None, "use")', "__import__('os').urandom(8).hex()"),
    ("AMP goes off", "native/__init__.py", "mxnet_private.load_library(path)", "mx.library.load(path, verbose=False)"),
    ("the import does not register", "__init__.py", "native.is_available()  #", "None  #"),
    ("dense labels get no gradient", "description.py",
     '("label", "teacher_pred") if hard.sparse else ("teacher_pred",)',
     '("label", "teacher_pred")'),
    # Rows, ignored and smoothed labels, parts, skew, total variation.
    ("rows keep their axis", "operators.py", "return F.sum(sums if scale == 1 else sums * scale, axis=axis)",
     "return sums if scale == 1 else sums * scale", "test_cases.py"),
    ("rows of an empty batch", "description.py",
     'if self.reduction == "row" and axis is not None:\n            return (',
     "if False:\n            return (", "test_loss.py"),
    ("whole rows where samples are categories", "description.py",
     'if self.reduction == "row":\n            rows = ', "if False:\n            rows = ", "test_loss.py"),
    ("ignored rows count", "description.py", "heard = label != self.hard.ignore_label", "heard = label == label",
     "test_distillation.py"),
    ("an ignored label takes the place of weights", "description.py",
     "heard if weight is None else F.broadcast_mul(weight, heard)", "heard", "test_distillation.py"),
    ("labels to ignore by are not needed", "description.py", "hard.share == 0 and hard.ignore_label is None",
     "hard.share == 0", "test_distillation.py"),
    ("smoothing leaves the class out", "operators.py", "hot * (1 - smoothing), smoothing / count",
     "hot * (1 - smoothing), (1 - hot) * (smoothing / count)", "test_distillation.py"),
    ("parts have the loss's weight", "distillation.py", "hard_weight, None, False", "hard_weight, self._weight, False",
     "test_distillation.py"),
    ("parts are recorded", "distillation.py", "with mx.autograd.pause():", "if True:", "test_distillation.py"),
    ("total variation times T squared", "description.py", 'temperature if form.get("form") == "tv" else', "",
     "test_distillation.py"),
    ("skew: near rows lose their digits", "operators.py", "square < 1e-4", "square < 0", "test_family.py"),
    ("skew: a label of 0", "operators.py", "by_p = F.where(p, by_p, at_zero)", "pass", "test_family.py"),
    ("skew: two zeros", "operators.py", "by_q = by_q * ((p + q) != 0)", "pass", "test_family.py"),
    ("skew: the sides of the reverse", "operators.py",
     "skew_terms(F, label, pred, skew=skew, pred_space=label_space, label_space=pred_space, **given)",
     "skew_terms(F, pred, label, skew=skew, pred_space=pred_space, label_space=label_space, **given)"),
    ("pickles of 0.2 have no skew", "distillation.py", "_skew = 0.1  # for", "# of", "test_distillation.py"),
    ("agreement in float16", "metric.py", '(x if x.dtype == np.float64 else x.astype("float32"))', "x",
     "test_metric.py"),
    ("rows without a weight agree too", "metric.py", "found = found[np", "found[np", "test_metric.py"),
    ("0 log 0 of the entropy", "metric.py", "mx.nd.where(probs, probs * log, probs)", "(probs * log)",
     "test_metric.py"),
    ("the operator's rows as samples", "native/plan.h", "if (by_row) batch = rows, batch_stride = 1;", "",
     "test_native.py::test_pairs"),
    ("the operator counts ignored rows", "native/plan.h", "counts_in &= !ignored(r);", "", "test_cases.py"),
    ("the operator's ignored rows have a value", "native/plan.h",
     "if (ignores_) silence_ignored(begin, end, value);", "", "test_cases.py"),
    ("the operator's ignored rows have a gradient", "native/plan.h",
     "if (ignores_) silence_ignored(begin, end, factor);", "", "test_cases.py"),
    ("the operator's ignored rows have a weight's gradient", "native/plan.h", "if (ignored(r)) return;", "",
     "test_distillation.py::test_what_an_ignored_row_holds_does_not_matter"),
    ("the operator's smoothing leaves the class out", "native/plan.h",
     "1 - call_.label_smoothing + elsewhere, elsewhere", "1 - call_.label_smoothing, elsewhere",
     "test_distillation.py::test_a_smoothed_label_is_a_dense_one"),
    ("the operator's total variation times T squared", "native/plan.h",
     "job_.form == kTotalVariation ? temperature : ", "", "test_distillation.py"),
    ("the operator's skew at a label of 0", "native/plan.h",
     "job_.log_epsilon -= std::log1p(-call_.skew);", "job_.log_epsilon -= 0;",
     "test_family.py::test_skewed_divergences_of_disjoint_sides"),
    ("the operator's skew: near rows lose their digits", "native/pair.h", "near = m.p * log1p_excess<T>(m.y);",
     "near = far;", "test_family.py::test_skewed_divergences_of_near_logits"),
    ("the operator's skew: a slope of pred's alone", "native/pair.h",
     "(c.unskewed * m.change - per_element)", "(c.unskewed * m.change - T(1))",
     "test_family.py::test_skewed_divergences_of_near_logits"),
    ("the reverse's hard labels score the teacher", "native/plan.h", "job_.scored = side_of(kPred);",
     "job_.scored = kPred;", "test_distillation.py::test_a_teacher_in_any_space"),
    ("the reverse keeps the sums of the other side", "native/plan.h",
     "std::swap(job_.stats[kFirstSum], job_.stats[kSecondSum]);", "", "test_native.py::test_pairs"),
    # The operator for a stored teacher.
    ("stored teacher: a category twice", "native/top_k.h", "if (seen[at >> 6] & bit) return false;", "",
     "test_top_k.py::test_no_silent_category"),
    ("stored teacher: the tail holds what was kept", "native/top_k.h", "block[at] = -inf<T>();", "",
     "test_top_k.py::test_all_categories_are_the_dense_loss"),
    ("stored teacher: a tail where all is kept", "native/top_k.h", "known < job.n && mass < 1", "mass < 1",
     "test_top_k.py::test_all_categories_are_the_dense_loss"),
    ("stored teacher: empty places are read", "native/top_k.h", "if (category[i] < 0) continue;", "",
     "test_top_k.py::test_empty_places"),
    ("stored teacher: a row of empty places", "native/top_k.h", "if (known == 0) return 0;", "",
     "test_top_k.py::test_empty_places"),
    ("stored teacher: slopes by logarithms", "native/top_k.h", "(slope[i] - q[i] * all)", "slope[i]",
     "test_top_k.py::test_all_categories_are_the_dense_loss"),
    ("stored teacher: the mixture", "native/top_k.h", "own[i] += (1 - job.beta) * q[i];", "own[i] += job.beta * q[i];",
     "test_cases.py"),
    ("stored teacher: one exponential for both", "native/top_k.h", "of_others += one, one = 0;", "one = 0;",
     "test_cases.py"),
    ("stored teacher: labels at the temperature", "native/top_k.h", "squarings == 0 ? others : at_one.first()",
     "others", "test_cases.py"),
    ("stored teacher: labels' gradient at the temperature", "native/top_k.h",
     "one * at_temperature_one<T>(powers, e, off)", "one * e", "test_cases.py"),
    ("stored teacher: a class that is kept", "native/top_k.h", "(category[i] == c ? at_class : 0)", "0",
     "test_cases.py"),
    ("stored teacher: a class that is not", "native/top_k.h", "if (c >= first && c < first + count) block",
     "if (false) block", "test_cases.py"),
    ("stored teacher: a label that is no class", "native/top_k.h", "|| (hard && c < 0) ", "",
     "test_top_k.py::test_a_label_that_is_no_class"),
    ("stored teacher: smoothing in the gradient", "native/top_k.h",
     "hard ? job.hard_share * job.smoothing / static_cast<double>(job.n) : 0", "0", "test_cases.py"),
    ("stored teacher: a head of 0", "native/top_k.h", "if (g == T(0)) return silence();", "",
     "test_top_k.py::test_no_silent_category"),
    ("stored teacher: blocks of a streamed row", "native/top_k.h", "(category[i] + skew) / kBlock",
     "category[i] / kBlock", "test_top_k.py::test_a_gradient_past_the_cache"),
    ("stored teacher: a weight of 0 that counts nowhere", "top_k_description.py",
     "learned=own is not None and not whole", "learned=own is not None", "test_cases.py"),
    # Graphs of our own.
    ("hybridize keeps old graphs", "block.py",
     "self._own_graphs = GraphStore({name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None})",
     "self._own_graphs = self.graph_store()", "test_graphs.py"),
    ("two threads trace one graph", "graphs.py", "with self._lock:", "if True:",
     "test_programs.py::test_first_calls_from_several_threads"),
    ("graphs without static_alloc", "graphs.py", '("static_alloc", ', "(", "test_graphs.py"),
    ("graphs without static_shape", "graphs.py", '"static_shape", ', "", "test_graphs.py"),
    ("graphs without inline_limit", "graphs.py", '"inline_limit", ', "", "test_graphs.py"),
    ("graphs without forward_bulk_size", "graphs.py", '"forward_bulk_size", ', "", "test_graphs.py"),
    ("graphs without backward_bulk_size", "graphs.py", ', "backward_bulk_size")', ")", "test_graphs.py"),
    # The operator.
    ("the gradient to a label of 0", "native/pair.h", "return (x.p == T(0)) | (x.q == T(0)) ? V{} : -x.p / x.q;",
     "return x.p == T(0) ? V{} : -x.p / x.q;", "test_native.py::test_edges"),
    ("epsilon at a masked score", "native/pair.h", "x.log_q > -inf<T>() ? log_epsilon - x.log_q : V{}",
     "log_epsilon - x.log_q", "test_reports.py::test_kl_at_every_gap"),
    ("exponentials below the normal numbers", "native/vector_math.h", "none ? Vec<T>{} : e", "e"),
    ("Gaussians wider than an exponential", "native/vector_math.h", "x = Min<T>(most, within)",
     "x = Min<T>(ExpRange<T>::fits, within)", "test_gaussian.py::test_log_variances_up_to_the_end_of_the_range"),
    ("Gaussians narrower than an exponential", "native/gaussian.h", ".half_excess() + p.below", ".half_excess()",
     "test_gaussian.py::test_log_variances_up_to_the_end_of_the_range"),
    ("Gaussians: the low part of ln 2", "native/vector_math.h", "tail - k * ExpRange<T>::ln2_lo", "tail",
     "test_gaussian.py::test_published_formula"),
    ("the excess at absent labels", "native/form.h", "term = p == T(0) ? q : term;", "",
     "test_cases.py::test_weight_zero_silences_a_row"),
    ("the gradient to a dense label under a mask", "native/hard_labels.h",
     "(x.x[kHard] == T(0)) & !(by < inf<T>())", "x.x[kHard] != x.x[kHard]",
     "test_native.py::test_gradient_to_dense_labels"),
    ("sums that were not kept", "native/kernel.h", "if (!job.kept || job.head.data) find_sums();\n    else",
     "if (job.kept)"),
    ("kept sums under another head", "native/kernel.h", "!job.kept || job.head.data", "!job.kept"),
    ("kept exponentials of a smaller maximum", "native/kernel.h", "if (F::kTaken & 1 << side) r.side",
     "if (false) r.side", "test_reports.py::test_two_nearly_equal_rows_of_scores"),
    ("exponentials at temperature 4", "native/form.h", "t == T(0.25) ? 2", "t == T(0.25) ? 1",
     "test_distillation.py::test_published_formula"),
    ("sums that follow from the value", "native/kernel.h", "i == form.by_value ? value : splat(T(-1))", "splat(T(-1))"),
    ("ties of halves", "native/convert.h", "bits += 0xc8000fffu + (bits >> 13 & 1u);", "bits += 0xc8001000u;"),
    ("doubles are rounded twice", "native/convert.h", "if (!(bits & 1)) bits", "if (false) bits"),
    ("integers overflow", "native/convert.h", "if (x >= high) to[i]", "if (false) to[i]"),
    ("NaN as an integer", "native/convert.h", "x == x ? static_cast<To>(x) : To(0)", "static_cast<To>(x)",
     "test_reports.py::test_a_gradient_of_nan_in_whole_numbers_is_0"),
    ("numbers obey the locale", "native/call.h", "strtod_l(text.c_str(), &end, plain)", "strtod(text.c_str(), &end)",
     "test_programs.py::test_a_locale_with_a_decimal_comma"),
    ("no thread is an error", "native/threads.h", "} catch (const std::system_error&) {",
     "} catch (const std::bad_alloc&) {", "test_programs.py::test_no_further_thread_may_start"),
    ("shapes are not inferred", "native/plan.h", "if (pass) fill(&(*shapes)[i], shape);", "",
     "test_native.py::test_shapes_are_inferred_both_ways"),
    ("near-equal standard deviations", "native/gaussian.h", "(off < T(0.25)) & (off > T(-0.25)) ?",
     "(off < T(0)) & (off > T(0)) ?",
     "test_native.py::test_gaussians_of_nearly_the_same_spread"),
    ("the low part of a shift", "native/kernel.h", "r.shift_low = (a - (r.shift - back)) - (b + back);",
     "r.shift_low = V{};",
     "test_native.py::test_scores_far_from_zero"),
    ("a child keeps its parent's threads", "native/threads.h",
     "pthread_atfork(nullptr, nullptr, [] { instance()->forget(); });", "",
     "test_native.py::test_after_fork"),
    ("hard labels meet log-probabilities", "native/call.h", "if (c.space[0] != kLogits) throw", "if (false) throw",
     "test_native.py::test_errors"),
    ("a dtype that nobody says", "native/op.cc", "if (type < 0 && is_float(first)) type = first;", "",
     "test_native.py::test_types_that_nobody_says"),
    ("errors add up", "native/op.cc", 'last_message = std::string("gluon_kl: ") + error.what();',
     'last_message += std::string("gluon_kl: ") + error.what();', "test_native.py::test_an_error_is_forgotten"),
    # Faults that users reported.
    # 1: a float16 array gets the gradient of a tiny negative double
    ("a tiny negative double as a half", "native/convert.h", "__builtin_fabs(f) > __builtin_fabs(x)",
     "(f < 0 ? f < x : f > x)",
     "test_reports.py::test_tiny_negative_gradients"),
    # 2: Jensen-Shannon where a probability is subnormal
    ("js: the scaled derivative", "operators.py", "terms = p * (of_p * -beta)",
     "terms = p * (F.minimum(of_p, 80) * -beta)"),
    ("js: two zeros", "operators.py", "F.BlockGrad(F.maximum(log_p, -_FLOOR) - F", "F.BlockGrad(log_p - F"),
    ("js: near the ends of beta", "operators.py", "other = F.where(size > -20,", "other = F.where(size > 0,"),
    ("js: odds close to -1", "operators.py", "F.where(own < -0.5, F.log", "F.where(own < -2, F.log"),
    ("js: the slope of a probability of 0", "operators.py", "log_share, other + 80)", "log_share, other)"),
    ("js: the operator's slope cut off", "native/pair.h", "d == -inf<T>() ? splat(T(-80)) : d",
     "Max<T>(T(-80), d)", "test_reports.py::test_js_at_every_gap"),
    ("js: the operator's slope at 0", "native/pair.h", "d == -inf<T>() ? splat(T(-80)) : d", "d",
     "test_reports.py::test_js_at_every_gap"),
    ("kl: the derivative of a subnormal's logarithm", "operators.py", "(tiny * (_SCALE - 1) + 1)", "(tiny * 0 + 1)"),
    # 3: an element of weight 0 in a row that counts
    ("the result is selected, not the argument", "operators.py", "return log_of_probs(F, silenced(F, x, mask, 0))",
     "return log_of_probs(F, x)"),
    # 4: the gradient to a weight of 0 beside an infinite term
    ("a weight of 0 in a row that is not finite", "operators.py", "off * F.broadcast_like(finite, off)",
     "off * is_finite(silent)"),
    ("the operator: a weight of 0 in such a row", "native/plan.h", "sound &= std::isfinite(",
     "sound |= std::isfinite(", "test_reports.py::test_a_weight_of_zero_in_a_row_that_is_not_finite"),
    ("a silent term counts for its weight", "operators.py", "F.where(off, zero, heard) + silent", "heard + silent"),
    # 5: a subclass overrides hybrid_forward
    ("an override is ignored", "gluon1.py", "if type(self).hybrid_forward is not type(self)._loss:", "if False:"),
    ("a scope of Gluon's is entered twice", "gluon1.py",
     "with contextlib.nullcontext() if scope is self._scope else self.name_scope():",
     "with self.name_scope():"),
    ("copies keep Gluon's graph", "block.py", '"_cached_op": None,', ""),
    # 6: a subclass overrides forward
    ("inputs by name in the order of the call", "gluon1.py", "return bound.args[extra:]",
     "return (*inputs[extra:], *named.values())"),
    # 7: memory does not grow if a number changes
    ("a graph for each number", "base.py", 'number = key.fused and "number" in key.dtypes',
     "number, key = False, key._replace(dtypes=tuple(inputs))"),
    ("graphs without an end", "graphs.py", "self._graphs.pop(other, None)", "pass"),
    ("texts of calls without an end", "native/__init__.py", "@functools.lru_cache(maxsize=_TEXTS)",
     "@functools.lru_cache(maxsize=None)"),
    ("calls without an end", "native/call.h", "if (known->size() >= kCalls) known->clear();", "",
     "test_reports.py::test_memory_stays_flat"),
    ("a number counts with its first value", "graphs.py", "self._op(*[_array(key, inputs[i]) for i in self._used])",
     "self._op(*[self.__dict__.setdefault(i, _array(key, inputs[i])) for i in self._used])"),
    # 8: class indices of any dtype
    ("booleans reach MXNet's half of the interface", "native/op.cc",
     "std::replace(in_types, in_types + inputs, int(gluon_kl::kBool), int(gluon_kl::kUint8));", "",
     "test_modes.py::test_one_hot_labels_of_every_dtype"),
    ("a teacher of any dtype", "autograd.py", "**{name: F.identity(x, **use) for name, x in others}}",
     "**{name: x if name in no_grad else F.identity(x, **use) for name, x in others}}"),
    ("class indices have no say in the dtype", "description.py",
     "pred, label, teacher_pred, own = self.lifted(F, world, (pred, label, teacher_pred, own))",
     "pred, _, teacher_pred, own = self.lifted(F, world, (pred, None, teacher_pred, own))"),
    # 9: one category gives exactly 0
    ("one category in a graph of the user's", "operators.py", "F.softmax(F.zeros_like(logits), axis=axis) < 1", "2"),
    ("one category", "base.py", "single_category=axis is not None and shape[axis] == 1)", "single_category=False)"),
    # 10: tiny divergences and extreme temperatures
    ("a gap of two rounded logarithms", "native/kernel.h", "near ? -log1p<T>(sum[j].narrow()) :", "",
     "test_reports.py::test_tiny_distillation"),
    ("the gradient of near rows as of others", "native/pair.h", ": divergence.q_less_p(at)", ": both",
     "test_reports.py::test_tiny_divergences"),
    ("near rows in other lanes decide", "native/pair.h", "r.near == T(0) ? both :", "",
     "test_reports.py::test_rows_do_not_depend_on_their_neighbours"),
    ("unlikely categories hide near rows", "native/kernel.h", "| ((z_q < kNoMass<T>) & (z_p < kNoMass<T>))", "",
     "test_reports.py::test_tiny_divergences"),
    ("a weight's gradient from plain terms", "native/plan.h", "} else if (job_.whole_rows) {",
     "} else if (job_.whole_rows && job_.stats[kValue]) {",
     "test_reports.py::test_tiny_divergences_in_every_way"),
    ("tiny divergences: two log-sums", "operators.py", "F.log(tops[3] / tops[2])", "F.log(tops[3] / tops[2]) + 1e-5"),
    ("tiny divergences: the series", "operators.py", "F.where(square < 1e-7, square", "F.where(square < 0, square"),
    ("tiny divergences: the series of js", "operators.py", "F.where(square < 1e-6, F", "F.where(square < 0, F"),
    ("temperatures beyond", "distillation.py", "temperature, 1e-6, 1e6)", "temperature, 1e-150, 1e150)"),
    # 11: numbers that no loss can use are refused when it is created
    ("infinite arguments", "checks.py", "if not math.isfinite(number):", "if False:"),
    ("an epsilon above 1", "checks.py", "if not 0 < number <= maximum:", "if not 0 < number:"),
    ("numbers of other types stay as they are", "checks.py", "return value if type(value) is int else number",
     "return value"),
    ("an axis without bounds", "checks.py", "if not -MAX_AXES <= axis < MAX_AXES:", "if False:"),
    # 12: unknown shapes
    ("a label that nothing ties to pred", "native/__init__.py", "    for name in tied:  #", "    for name in []:  #",
     "test_reports.py::test_open_shapes"),
    ("class indices that nothing ties to pred", "native/__init__.py", "    for name in indices:  #",
     "    for name in []:  #",
     "test_reports.py::test_open_shapes"),
    ("a weight whose rank nobody asks for", "native/__init__.py", 'if "weight" in given:', "if False:",
     "test_reports.py::test_open_shapes"),
    ("a tie that wants equal dtypes", "native/op.cc", ": -1;  // as its use asks", ": gluon_kl::kFloat32;",
     "test_reports.py::test_open_labels_of_every_dtype"),
    # 13: the package imported again
    ("the operator is loaded twice", "native/__init__.py", "if _handle() is None:  #", "if True:  #"),
    ("the operator of another copy", "native/__init__.py", "ctypes.CDLL(path, mode=os.RTLD_NOLOAD)", "pass"),
    ("another release's library stays in memory", "native/__init__.py",
     '"install gluon_kl again" if _handle() is None else', '"install gluon_kl again" if True else'),
    ("what a failed import of MXNet leaves", "_mxnet.py", 'if name.partition(".")[0] == "mxnet"]:', "if False]:"),
    # 14: an array as dtype
    ("an array is no dtype", "_lend.py", "np.dtype(own if isinstance(own, type) else kind,", "np.dtype(kind,"),
    ("an array is no dtype of an array", "_lend.py", "None if dtype is None else _dtype(dtype)", "dtype"),
    # 15: the extra beside other pins of MXNet
    # 16: programs that import MXNet first
    ("the program's own module goes away", "__main__.py", 'sys.modules["__main__"] = main', "pass",
     "test_reports.py::test_programs_run_as_python_runs_them"),
    ("a script's folder is not looked in", "__main__.py", "set_first_path(os.path.dirname(os.path.realpath(path)))",
     "pass",
     "test_reports.py::test_programs_run_as_python_runs_them"),
    ("a program's arguments are taken for ours", "__main__.py",
     'if text in ("-m", "-c") or not text.startswith("-")), len', "if False), len",
     "test_reports.py::test_programs_run_as_python_runs_them"),
    ("the hook imports gluon_kl", "_hook.py", 'home = importlib.util.find_spec("gluon_kl")', "import gluon_kl\n        "
     'home = importlib.util.find_spec("gluon_kl")',
     "test_reports.py::test_a_hook_that_outlives_the_package"),
    ("the hook wants its package", "_hook.py", "if home is None or not home.submodule_search_locations:", "if False:",
     "test_reports.py::test_a_hook_that_outlives_the_package"),
    ("the hook wants this release", "_hook.py", "if not os.path.isfile(file):", "if False:",
     "test_reports.py::test_a_hook_that_outlives_the_package"),
    ("a second finder", "_lend.py", "if NEEDED and lent() is None and not is_mxnet_2():",
     "if NEEDED and not is_mxnet_2():",
     "test_reports.py::test_the_hook_is_written_serves_and_is_removed"),
    ("a hook elsewhere than the package", "_hook.py", "return own + shared if any(", "return own + shared if not any(",
     "test_reports.py::test_the_hook_goes_where_the_package_is"),
    # 17: check_inputs names the right remedy
    ("check_inputs takes sigmoid outputs for scores", "diagnostics.py", "if rows.low >= 0:\n        raise",
     "if False:\n        raise"),
    ("check_inputs takes small negatives for scores", "diagnostics.py", "if rows.nearly_probabilities():", "if False:"),
    ("check_inputs takes counts for amounts", "diagnostics.py", "if rows.whole_numbers and rows.high > 1:",
     "if False:"),
    ("check_inputs divides padding by 0", "diagnostics.py", "and filled.fit(side.space):", "and False:"),
    ("check_inputs looks at silenced values", "diagnostics.py", "np.ones(values.shape, bool) if weight is None",
     "np.ones(values.shape, bool) if True"),
    ("check_inputs takes lengths", "diagnostics.py", "1 < weight.high <= longest", "False"),
    ("check_inputs takes pixels", "diagnostics.py", "if values.low >= 0 and values.high <= 1:\n        return",
     "if values.low >= 0:\n        return"),
    ("check_inputs takes variances", "diagnostics.py", "if many or values.high > 50:", "if values.high > 50:"),
    # 18: second-order gradients
    ("a view that has no second gradient", "autograd.py", "mxnet_private.copy_function()(x, out=x.detach())",
     "x.reshape(x.shape)"),
]


class Compiled:
    """The operator with its baseline kernels, hardly optimised, because a wrong result needs no speed.

    The unchanged sources are compiled once, in a separate folder.
    """

    def __init__(self, folder):
        self.objects = Path(folder)
        build = runpy.run_path(str(ROOT / NATIVE / "build_flags.py"))
        home = Path(importlib.util.find_spec("mxnet").origin).parent
        self.command = [os.environ.get("CXX", "g++"), *(flag for flag in build["FLAGS"] if flag != "-O3"), "-O1",
                        "-fPIC", "-pthread", f'-DGLUON_KL_VERSION="{gluon_kl.__version__}"',
                        *(f"-I{home / each}" for each in ("include/mxnet", "include", "src"))]
        self.flags = build["ISA_FLAGS"]
        # The baseline first: of an inline function that several have, the linker keeps the first.
        self.sources = ["op.cc", *sorted(build["kernel_sources"](os.uname().machine), key="kernel_baseline.cc".__ne__)]
        with ThreadPoolExecutor(2) as pool:
            for made in [pool.submit(self.compile, ROOT, source, self.objects) for source in self.sources]:
                made.result()

    def compile(self, root, source, objects):
        run([*self.command, *self.flags.get(source, []), *(["-O0"] if "avx" in source else []), "-c",
             Path(root) / NATIVE / source, "-o", objects / f"{source}.o"])

    def includes(self, root, source):
        """Our own files from which a source is compiled."""
        said = run([*self.command, *self.flags.get(source, []), "-MM", Path(root) / NATIVE / source])
        return {Path(word).name for word in said.split() if f"{NATIVE}{os.sep}" in word}

    def build(self, folder, environment, changed):
        """Compile in a copy what runs and holds the changed file, and link it with the rest."""
        anew = [source for source in self.sources if "avx" not in source and changed in self.includes(folder, source)]
        if not anew:
            raise SystemExit(f"no source that runs includes {changed}")
        for source in anew:
            self.compile(folder, source, Path(folder))
        objects = [(Path(folder) if source in anew else self.objects) / f"{source}.o" for source in self.sources]
        run([*self.command, "-shared", *objects, "-o", Path(folder) / NATIVE / "_kernels.so"])
        # Otherwise the tests would skip what they should try.
        run([sys.executable, "-c", "from gluon_kl import native; assert native.is_available(), native.why_not()"],
            environment)


def run(command, environment=None):
    done = subprocess.run([str(part) for part in command], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def copy(compiled=False):
    """A folder with the package and its tests, and the environment that they run in."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gluon_kl", "tests", "docs", "tutorials"):
            shutil.copytree(str(ROOT / name), os.path.join(folder, name), ignore=shutil.ignore_patterns(
                "__pycache__", "_build", "gallery", "generated", *["*.so"] * compiled))
        for name in ("tasks.py", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE"):
            shutil.copy(str(ROOT / name), folder)
        chosen = {"GLUON_KL_ISA": "baseline"} if compiled else {}
        yield folder, {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", **chosen}


def failures(folder, environment, tests, *options):
    """The nodes of `tests` (names below tests/) that fail, or how pytest ended if it names none."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m",
         "not site", *options, "--rootdir", folder, *[os.path.join(folder, "tests", name) for name in tests]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800, cwd=folder, env=environment)
    failed = re.findall(r"^(?:FAILED|ERROR) (?:\S*?tests/)?(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode in (4, 5):
        raise SystemExit(f"pytest ran no tests of {' '.join(tests)}")
    if done.returncode not in (0, 1) and not failed:
        return [f"crash, exit code {done.returncode}"]
    return failed


def for_mxnet_2(mutation):
    """Whether only the tests of MXNet 2 can notice it."""
    return any(test.startswith(each) for test in mutation[4:] for each in ON_MXNET_2)


def probable(name, named=None):
    """The tests that probably fail, in the order to try them."""
    return [named] if named else [*NOTICES.get(name, ["test_cases.py"]), "test_reports.py"]


def try_mutation(mutation, compiled):
    """The test that catches it, or None."""
    what, name, source, target, *named = mutation
    native = name.endswith((".h", ".cc"))
    with copy(native) as (folder, environment):
        path = Path(folder) / "gluon_kl" / name
        text = path.read_text(encoding="utf-8")
        if text.count(source) != 1:
            raise SystemExit(f"{what}: {source!r} stands {text.count(source)} times in {name}, not once")
        path.write_text(text.replace(source, target), encoding="utf-8")
        if native:
            compiled.build(folder, environment, path.name)
        first = probable(name, *named)
        fewer = ["-k", "native"] if native else ["-k", "not native"] if name in OVER_OPERATORS else []
        if for_mxnet_2(mutation):
            rest = ON_MXNET_2
        else:
            rest = [*(COMPILED if native else SUITE), "test_reports.py"]
        # The first files one by one, since conftest.py would sort them.
        for tests, options in [*(([test], [] if "::" in test else fewer) for test in first), (rest, [])]:
            found = failures(folder, environment, tests, "-x", *options)
            if found:
                return found[0]


def fails_of_itself(catchers):
    """The tests that fail without any mutation, for example on this machine, and so catch nothing."""
    with copy() as (folder, environment):
        return failures(folder, environment, catchers) if catchers else []


def main():
    chosen = [mutation for mutation in MUTATIONS if all(word in mutation[0] for word in sys.argv[1:])]
    here = [mutation for mutation in chosen if for_mxnet_2(mutation) == _mxnet.GLUON_2]
    if len(here) < len(chosen):
        print(f"{len(chosen) - len(here)} are for MXNet {1 if _mxnet.GLUON_2 else 2}", flush=True)
    chosen = here
    catchers = []
    with tempfile.TemporaryDirectory() as objects, ThreadPoolExecutor(2) as pool:
        native = any(mutation[1].endswith((".h", ".cc")) for mutation in chosen)
        compiled = Compiled(objects) if native else None
        # What is compiled first: it takes longest.
        chosen.sort(key=lambda mutation: not mutation[1].endswith((".h", ".cc")))
        for mutation, catcher in zip(chosen, pool.map(lambda mutation: try_mutation(mutation, compiled), chosen)):
            catchers.append(catcher)
            print(f"{mutation[0]:40}  {catcher or 'SURVIVES'}", flush=True)
    survivors = catchers.count(None)
    print(f"{len(chosen) - survivors} passed, {survivors} failed")
    wrong = fails_of_itself(sorted({catcher for catcher in catchers if catcher and "::" in catcher}))
    for catcher in wrong:
        print(f"{catcher} fails of itself")
    return 1 if survivors or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
