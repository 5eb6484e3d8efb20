"""A sample of MXNet's own work: what `gluon_kl._mxnet` lends it must do for a whole program, not only for our losses.

Where nothing is lent, the same tests show what MXNet does by itself.
"""

import importlib
import pkgutil
import warnings

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon, nd

I = np.int64  # noqa: E741  a NumPy integer, which NumPy 2 spells in another way than Python's

ABSENT = {"onnx", "tensorrt", "torch", "caffe"}  # what MXNet's submodules want that is no part of it


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(3)
    np.random.seed(3)


@pytest.fixture
def digits(rng):
    """64 little pictures of two kinds: the brighter half is on the left, or on the right."""
    label = rng.randint(0, 2, 64)
    data = rng.uniform(0, 0.4, (64, 1, 8, 8)).astype("float32")
    data[label == 0, :, :, :4] += 0.6
    data[label == 1, :, :, 4:] += 0.6
    return data, label.astype("float32")


def convolutional(prefix=None):
    net = gluon.nn.HybridSequential(prefix=prefix)
    with net.name_scope():
        net.add(gluon.nn.Conv2D(I(4), kernel_size=(I(3), 3), padding=(1, I(1)), activation="relu"),
                gluon.nn.BatchNorm(), gluon.nn.MaxPool2D((I(2), I(2))), gluon.nn.Dropout(0.1), gluon.nn.Flatten(),
                gluon.nn.Dense(I(2)))
    net.initialize(mx.init.Xavier(magnitude=np.float32(2)))
    return net


def test_every_module_can_be_imported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [module.name for module in pkgutil.walk_packages(mx.__path__, "mxnet.", onerror=lambda name: None)]
        failed = {}
        for name in names:
            if ".tools" in name or name.endswith((".__main__", ".setup", ".libmxnet")):
                continue  # scripts, and a library that is no module
            try:
                importlib.import_module(name)
            except ImportError as error:
                if not any(word in str(error) for word in ABSENT):
                    failed[name] = error
    assert len(names) > 100
    assert not failed


# Gluon


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lamb", "rmsprop"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_training(digits, optimizer, hybrid):
    net, loss, metric = convolutional(), gluon.loss.SoftmaxCELoss(), mx.metric.Accuracy()
    if hybrid:
        net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), optimizer, {"learning_rate": 0.02})
    batches = gluon.data.DataLoader(gluon.data.ArrayDataset(*digits), batch_size=16, shuffle=True)
    for _ in range(6):
        for data, label in batches:
            with autograd.record():
                loss(net(data), label).backward()
            trainer.step(I(len(data)))
    metric.update([nd.array(digits[1])], [net(nd.array(digits[0]))])
    assert metric.get()[1] > 0.9


def test_a_recurrent_net_and_gradients():
    layer = gluon.rnn.LSTM(I(5), num_layers=I(2), layout="NTC")
    layer.initialize()
    x = nd.random.normal(shape=(I(3), 4, I(2)))
    x.attach_grad()
    with autograd.record():
        out = layer(x).sum()
    out.backward()
    step = 1e-2
    shift = nd.zeros(x.shape)
    shift[I(1), 2, 0] = step
    slope = (layer(x + shift).sum() - layer(x - shift).sum()) / (2 * step)
    assert abs(slope.asscalar() - x.grad[1, 2, 0].asscalar()) < 1e-3


@pytest.mark.parametrize("kind", ["files", "structure"])
def test_parameters_are_saved_and_loaded(digits, tmp_path, kind):
    net, path = convolutional(), str(tmp_path / "net.params")
    expected = net(nd.array(digits[0])).asnumpy()
    if kind == "files":
        net.collect_params().save(path, strip_prefix=net.prefix)
        other = convolutional()
        other.collect_params().load(path, restore_prefix=other.prefix)
    else:
        net.save_parameters(path)
        other = convolutional()
        other.load_parameters(path)
    assert (other(nd.array(digits[0])).asnumpy() == expected).all()


def test_export_and_import(digits, tmp_path):
    net, path = convolutional(), str(tmp_path / "net")
    net.hybridize()
    data = nd.array(digits[0])
    expected = net(data).asnumpy()
    net.export(path, epoch=3)
    imported = gluon.SymbolBlock.imports(path + "-symbol.json", ["data"], path + "-0003.params")
    np.testing.assert_allclose(imported(data).asnumpy(), expected, rtol=1e-6)


WORKERS = """
import gluon_kl
import multiprocessing, sys, warnings
import numpy as np, mxnet as mx
from mxnet import gluon

class Squares(gluon.data.Dataset):
    def __getitem__(self, i):
        return mx.nd.full((2, np.int64(3)), i * i), np.float32(i)
    def __len__(self):
        return 10

def main():
    loader = gluon.data.DataLoader(Squares(), batch_size=4, num_workers=2, last_batch="keep", timeout=60)
    for _ in range(2):
        seen = [(x.asnumpy(), i.asnumpy()) for x, i in loader]
        assert [len(i) for _, i in seen] == [4, 4, 2]
        for x, i in seen:
            assert x.shape[1:] == (2, 3) and (x == (i ** 2)[:, None, None]).all()
    print("all squares")

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    main()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(script, method):
    assert "all squares" in script(WORKERS, method)


# Arrays


def test_old_arrays():
    x = nd.arange(24).reshape((I(2), I(3), -1))
    assert x.shape == (2, 3, 4)
    assert nd.zeros((I(2), 3)).shape == nd.full((2, I(3)), 7).shape == (2, 3)
    assert x.sum(axis=(I(0), 2)).asnumpy().tolist() == [60, 92, 124]
    assert nd.transpose(x, axes=(I(2), 0, I(1))).shape == (4, 2, 3)
    assert nd.slice(x, begin=(I(0), 1, None), end=(I(1), 3, None)).shape == (1, 2, 4)
    assert x[I(1), 2].asnumpy().tolist() == [20, 21, 22, 23]
    assert nd.topk(x, k=I(2), axis=I(-1), ret_typ="value")[0, 0].asnumpy().tolist() == [3, 2]
    assert nd.one_hot(nd.array([1, 0]), I(3)).asnumpy().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert (x > 3).sum().asscalar() == 20 and x.astype("int32").dtype == np.int32
    assert nd.array(np.arange(3)).dtype == np.float32 and nd.array(np.arange(3, dtype="int64"), dtype="int64")[1] == 1
    assert nd.concat(x, x, dim=I(1)).shape == (2, 6, 4) and "<NDArray 2x3x4" in repr(x)


@pytest.mark.parametrize("array", [nd.array, mx.np.array])
def test_integers_that_do_not_fit_wrap_around(array):
    assert array([300, -1], dtype="uint8").asnumpy().tolist() == [44, 255]
    assert array([2 ** 31], dtype="int32").asnumpy().tolist() == [-2 ** 31]


def test_sparse_arrays():
    dense = np.array([[0, 2, 0], [0, 0, 0], [3, 0, 4]], "float32")
    rows = nd.array(dense).tostype("row_sparse")
    compressed = nd.sparse.csr_matrix((np.array([2, 3, 4], "float32"), [1, 0, 2], [0, 1, 1, 3]), shape=(I(3), 3))
    assert rows.indices.asnumpy().tolist() == [0, 2]
    assert (compressed.asnumpy() == dense).all()
    assert (nd.sparse.dot(compressed, nd.ones((3, 1))).asnumpy() == dense.sum(1, keepdims=True)).all()


def test_saved_arrays(tmp_path):
    path = str(tmp_path / "arrays")
    nd.save(path, {"a": nd.ones((2, 3)), "b": nd.arange(3, dtype="int32")})
    loaded = nd.load(path)
    assert sorted(loaded) == ["a", "b"] and loaded["b"].dtype == np.int32


@mx.util.use_np
def test_new_arrays():
    x = mx.np.arange(6).reshape((I(2), I(3)))
    assert isinstance(np.sum(x), mx.np.ndarray) and np.sum(x) == 15  # by NumPy's protocol
    assert isinstance(np.prod(x + 1), mx.np.ndarray) and np.prod(x + 1) == 720
    assert isinstance(np.concatenate([x, x]), mx.np.ndarray) and isinstance(np.exp(x), mx.np.ndarray)
    assert mx.np.product(x + 1) == 720 and mx.np.round_(x + 0.4)[1, 2] == 5
    assert mx.np.sometrue(x) and mx.np.in1d(x, mx.np.array([2.0])).sum() == 1
    assert not mx.np.alltrue(x) and mx.np.trapz(x[0]) == 2 and (mx.np.msort(-x)[0] == -x[1]).all()
    assert mx.np.einsum("ij,kj->ik", x, x)[1, 1] == 50 and mx.np.linalg.norm(x[0, 1:]) == mx.np.sqrt(5)
    assert mx.np.zeros((I(2), 3), dtype=bool).dtype == np.bool_ and (x > 2).dtype == np.bool_
    assert mx.np.pad(x, ((I(0), 1), (1, I(0)))).shape == (3, 4) and mx.np.split(x, I(3), axis=I(1))[2][1, 0] == 5
    assert mx.np.nan_to_num(mx.np.array([mx.np.inf, mx.np.nan, -mx.np.inf]))[1] == 0
    assert mx.np.random.uniform(size=(I(2), 2)).shape == (2, 2) and mx.np.unique(x).shape == (6,)
    assert float(mx.npx.softmax(x, axis=I(-1)).sum()) == pytest.approx(2) and float(mx.np.percentile(x, 50)) == 2.5
    assert mx.np.empty_like(x).shape == x.shape and mx.np.isin(x, x).all() and mx.np.interp(2.5, x[0], x[1]) == 5


@mx.util.use_np
def test_training_with_new_arrays(digits):
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Dense(8, activation="tanh"), gluon.nn.Dense(2))
    net.initialize()
    net.hybridize()
    trainer, loss = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.05}), gluon.loss.SoftmaxCELoss()
    data, label = mx.np.array(digits[0].reshape(64, -1)), mx.np.array(digits[1])
    for _ in range(20):
        with autograd.record():
            value = loss(net(data), label)
        value.backward()
        trainer.step(64)
    assert value.mean() < 0.2 and isinstance(value, mx.np.ndarray)


# Symbols


def network():
    x = mx.sym.Convolution(mx.sym.Variable("data", shape=(0, I(1), 8, 8)), kernel=(I(3), I(3)), num_filter=I(4))
    x = mx.sym.Activation(x, act_type="relu")
    return mx.sym.SoftmaxOutput(mx.sym.FullyConnected(mx.sym.flatten(x), num_hidden=I(2)), name="softmax")


def test_module(digits, tmp_path):
    batches = mx.io.NDArrayIter(*digits, batch_size=16, shuffle=True, label_name="softmax_label")
    module = mx.mod.Module(network())
    module.fit(batches, num_epoch=5, optimizer="adam", optimizer_params={"learning_rate": 0.02}, eval_metric="acc",
               initializer=mx.init.Mixed([".*bias", ".*"], [mx.init.Zero(), mx.init.Xavier()]))
    accuracy = dict(module.score(batches, "acc"))["accuracy"]
    assert accuracy > 0.9
    module.save_checkpoint(str(tmp_path / "net"), 5)
    other = mx.mod.Module.load(str(tmp_path / "net"), 5)
    other.bind(batches.provide_data, batches.provide_label, for_training=False)
    assert dict(other.score(batches, "acc"))["accuracy"] == accuracy


def test_symbols_and_their_text():
    symbol = network()
    again = mx.sym.load_json(symbol.tojson())
    assert again.list_arguments() == symbol.list_arguments()
    arguments, out, _ = again.infer_shape(data=(I(5), 1, I(8), 8))
    assert out == [(5, 2)] and (4, 1, 3, 3) in arguments
    weight = mx.sym.Variable("w", shape=(I(2), 3), lr_mult=np.float32(2), init=mx.init.Constant(0.5))
    assert weight.attr("__shape__") == "(2, 3)" and weight.attr("__lr_mult__") == "2.0"
    mx.viz.print_summary(symbol, shape={"data": (1, 1, 8, 8)})
    value = mx.sym.reshape(mx.sym.Variable("a"), shape=(I(3), I(-1))).eval(a=nd.arange(6))[0]
    assert value.shape == (3, 2)


def test_control_flow():
    outputs, state = nd.contrib.foreach(lambda x, s: (x + s, x + s), nd.arange(4), nd.zeros((1,)))
    assert outputs.asnumpy().ravel().tolist() == [0, 1, 3, 6] and state.asscalar() == 6


class Double(mx.operator.CustomOp):
    def forward(self, is_train, req, in_data, out_data, aux):
        self.assign(out_data[0], req[0], nd.array(in_data[0].asnumpy() * 2))

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        self.assign(in_grad[0], req[0], out_grad[0] * 2)


@mx.operator.register("gluon_kl_test_double")
class DoubleProp(mx.operator.CustomOpProp):
    def __init__(self, shape="()"):
        super().__init__()
        assert "int64" not in shape

    def create_operator(self, ctx, shapes, dtypes):
        return Double()


def test_an_operator_in_python():
    x = nd.ones((2, 3))
    x.attach_grad()
    with autograd.record():
        y = nd.Custom(x, op_type="gluon_kl_test_double", shape=(I(2), I(3)))
    y.backward()
    assert (y.asnumpy() == 2).all() and (x.grad.asnumpy() == 2).all()


# Around it


def test_metrics():
    label, score = nd.array([0, 1, 1, 0]), nd.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    values = {}
    for name in ("acc", "f1", "mcc", "ce", "nll_loss"):
        metric = mx.metric.create(name)
        metric.update([label], [score])
        values[name] = metric.get()[1]
    assert values["acc"] == 0.75 and values["f1"] == pytest.approx(2 / 3) and values["mcc"] == pytest.approx(3 ** -0.5)
    assert values["ce"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean(), rel=1e-5) == values["nll_loss"]
    both = mx.metric.create([mx.metric.TopKAccuracy(2), mx.metric.Perplexity(None)])
    both.update([label], [score])
    assert both.get()[1] == [1.0, pytest.approx(np.exp(values["ce"]), rel=1e-5)]
    for name, expected in [("mse", 1 / 3), ("mae", 1 / 3), ("pearsonr", np.corrcoef([1, 2, 3], [1, 2, 4])[0, 1])]:
        metric = mx.metric.create(name)
        metric.update([nd.array([1, 2, 3])], [nd.array([1, 2, 4])])
        assert metric.get()[1] == pytest.approx(expected, rel=1e-5)


def test_random_numbers():
    draws = []
    for _ in range(2):
        mx.random.seed(I(11))
        draws.append([nd.random.normal(shape=(I(100), 100)).asnumpy(), nd.random.poisson(4, shape=1000).asnumpy(),
                      nd.random.gamma(2, 2, shape=(1000,)).asnumpy(), nd.random.randint(0, I(9), shape=50).asnumpy(),
                      nd.random.multinomial(nd.array([0.25, 0.75]), shape=I(2000)).asnumpy(),
                      nd.random.shuffle(nd.arange(50)).asnumpy()])
    for first, second in zip(*draws):
        assert (first == second).all()
    normal, poisson, gamma, _, multinomial, shuffled = draws[0]
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05 and abs(poisson.mean() - 4) < 0.3
    assert abs(gamma.mean() - 4) < 0.5 and abs(multinomial.mean() - 0.75) < 0.05
    assert sorted(shuffled) == list(range(50)) != list(shuffled)


@pytest.mark.parametrize("kind", ["local", "device"])
def test_kvstore(kind):
    store = mx.kv.create(kind)
    store.init(3, nd.ones((2, 2)))
    store.set_optimizer(mx.optimizer.SGD(learning_rate=0.5))
    store.push(3, [nd.ones((2, 2)), nd.ones((2, 2))])
    out = nd.zeros((2, 2))
    store.pull(3, out=out)
    assert (out.asnumpy() == 0).all()
    store.init(4, nd.ones((4, 2)).tostype("row_sparse"))
    rows = nd.sparse.zeros("row_sparse", (4, 2))
    store.row_sparse_pull(4, out=rows, row_ids=nd.array([1, 3]))
    assert rows.indices.asnumpy().tolist() == [1, 3]
    mx.kv.create("device").set_gradient_compression({"type": "2bit", "threshold": np.float32(0.5)})


def test_pictures():
    picture = nd.array(np.arange(5 * 6 * 3).reshape(5, 6, 3), dtype="uint8")
    tensor = nd.image.to_tensor(picture)
    assert tensor.shape == (3, 5, 6) and tensor.max().asscalar() == pytest.approx(89 / 255)
    assert nd.image.resize(picture, size=(I(4), I(2))).shape == (2, 4, 3)
    assert nd.image.normalize(tensor, mean=(0.5, np.float32(0.5), 0.5), std=0.5).min().asscalar() == -1
    assert (nd.image.flip_left_right(picture).asnumpy() == picture.asnumpy()[:, ::-1]).all()
    transform = gluon.data.vision.transforms.Compose([
        gluon.data.vision.transforms.Resize(8), gluon.data.vision.transforms.RandomFlipLeftRight(),
        gluon.data.vision.transforms.RandomBrightness(0.1), gluon.data.vision.transforms.ToTensor()])
    assert transform(picture).shape == (3, 8, 8)
    crop, box = mx.image.center_crop(picture, (I(4), 3))
    assert crop.shape == (3, 4, 3) and box == (1, 1, 4, 3)
    for augment in mx.image.CreateAugmenter((3, 4, 4), rand_crop=True, rand_mirror=True, mean=True, std=True):
        picture = augment(picture)
    assert picture.shape == (4, 4, 3)


def test_records(tmp_path):
    path = str(tmp_path / "data")
    records = mx.recordio.MXIndexedRecordIO(path + ".idx", path + ".rec", "w")
    for i in range(4):
        header = mx.recordio.IRHeader(0, [i, 0.5] if i % 2 else float(i), i, 0)
        records.write_idx(i, mx.recordio.pack(header, b"body%d" % i))
    records.close()
    records = mx.recordio.MXIndexedRecordIO(path + ".idx", path + ".rec", "r")
    header, body = mx.recordio.unpack(records.read_idx(3))
    assert header.label.tolist() == [3, 0.5] and body == b"body3"
    header, body = mx.recordio.unpack(records.read_idx(2))
    assert header.label == 2 and body == b"body2"


def test_an_iterator_in_cpp(tmp_path):
    path = tmp_path / "data.csv"
    np.savetxt(str(path), np.arange(12).reshape(4, 3), delimiter=",")
    batches = list(mx.io.CSVIter(data_csv=str(path), data_shape=(I(3),), batch_size=I(2)))
    assert [batch.data[0].asnumpy()[0, 0] for batch in batches] == [0, 6]


def test_initializers_and_schedules():
    for init in (mx.init.Xavier(), mx.init.Orthogonal(), mx.init.MSRAPrelu(), mx.init.Uniform(0.1),
                 mx.init.Normal(), mx.init.Bilinear()):
        array = nd.zeros((2, 2, 4, 4))
        mx.init.create(init.dumps())(mx.init.InitDesc("x_weight"), array)
        assert np.isfinite(array.asnumpy()).all() and (array.asnumpy() != 0).any()
    schedule = mx.lr_scheduler.CosineScheduler(10, base_lr=1.0, final_lr=0.0)
    assert [round(float(schedule(step)), 4) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
