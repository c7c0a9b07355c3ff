"""Other engines' products of ternary weights, for those that are installed: optional peers of `slt bench`.

    pip install -e ".[ternary]"

All of them round the inputs to 8 bits in each call, and hold weights of 2 bits or fewer, except PyTorch's int8.
"""

import ctypes
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

GROUP = 128  # weights per scale, of the engines that have groups
Product = Callable[[Tensor], Tensor]


class Engine(NamedTuple):
    """A product: its bits per weight, scales included, the packages that it needs, and what makes it.

    ``make(weight, scale, threads)`` takes int8 ``[rows, fan]`` of -1, 0 and 1, and the factor of all. It returns a
    function from float32 ``[batch, fan]`` to ``[batch, rows]``, which may reuse the memory of its result.
    """

    bits: float
    needs: tuple[str, ...]
    make: Callable[[Tensor, float, int], Product]


def _in_bytes(weight: Tensor, added: int) -> np.ndarray:
    """Four weights per byte, the first one lowest: uint8 ``[rows, fan / 4]`` of weight + added."""
    codes = (weight + added).to(torch.uint8).numpy()
    return sum(codes[:, i::4] << 2 * i for i in range(4)).astype(np.uint8)


def openvino_u2(weight: Tensor, scale: float, threads: int) -> Product:
    """OpenVINO's compressed weights of 2 bits, float16 scales of groups."""
    import openvino
    from openvino import opset13 as op

    rows, fan = weight.shape
    packed = _in_bytes(weight, 1)
    codes = openvino.Tensor(packed.reshape(-1), openvino.Shape([rows, fan // GROUP, GROUP]), openvino.Type.u2)
    zero = op.convert(op.constant(np.ones((1, 1, 1), np.uint8)), "f16")
    scales = op.constant(np.full((rows, fan // GROUP, 1), scale, np.float16))
    dense = op.multiply(op.subtract(op.convert(op.constant(codes), "f16"), zero), scales)
    dense = op.convert(op.reshape(dense, op.constant(np.array([rows, fan])), False), "f32")
    x = op.parameter([-1, fan], np.float32)
    options = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Model([op.matmul(x, dense, False, True)], [x])
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def product(x: Tensor) -> Tensor:
        request.infer([x.numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    product.holds = packed  # the model reads its memory
    return product


def onnxruntime_2bit(weight: Tensor, scale: float, threads: int) -> Product:
    """ONNX Runtime's MatMulNBits with 2 bits, float32 scales of groups, and inputs in int8 (accuracy level 4)."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, fan = weight.shape
    groups = fan // GROUP
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=fan,
        N=rows,
        bits=2,
        block_size=GROUP,
        accuracy_level=4,
    )
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])]
        for name, size in (("x", fan), ("y", rows))
    )
    codes = numpy_helper.from_array(_in_bytes(weight, 2).reshape(rows, groups, GROUP // 4), "codes")  # zero is 2
    scales = numpy_helper.from_array(np.full(rows * groups, scale, np.float32), "scales")
    graph = helper.make_graph([node], "product", inputs, outputs, [codes, scales])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would slow the others down
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def ggml_type(name: str) -> Callable[[Tensor, float, int], Product]:
    """llama.cpp's ternary types, with a scale per 256 weights."""

    def make(weight: Tensor, scale: float, threads: int) -> Product:
        import ggml

        rows, fan = weight.shape
        kind = getattr(ggml, f"GGML_TYPE_{name}")
        size = ggml.ggml_row_size(kind, fan) * rows
        codes, dense = np.empty(size, np.uint8), np.ascontiguousarray(weight.float().numpy() * scale)
        source = dense.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        ggml.ggml_quantize_chunk(kind, source, codes.ctypes.data_as(ctypes.c_void_p), 0, rows, fan, None)
        plans: dict[int, Callable[[Tensor], Tensor]] = {}

        def planned(batch: int) -> Callable[[Tensor], Tensor]:
            room = size + 4 * batch * (rows + fan) + (1 << 20)
            context = ggml.ggml_init(ggml.ggml_init_params(mem_size=room, mem_buffer=None, no_alloc=False))
            w, x = (ggml.ggml_new_tensor_2d(context, k, fan, n) for k, n in ((kind, rows), (ggml.GGML_TYPE_F32, batch)))
            ctypes.memmove(ggml.ggml_get_data(w), codes.ctypes.data, size)
            y = ggml.ggml_mul_mat(context, w, x)
            graph = ggml.ggml_new_graph(context)
            ggml.ggml_build_forward_expand(graph, y)
            plan = ggml.ggml_graph_plan(graph, threads, None)
            work = (ctypes.c_uint8 * max(plan.work_size, 1))()
            plan.work_data = ctypes.cast(work, ctypes.POINTER(ctypes.c_uint8))
            result = ctypes.cast(ggml.ggml_get_data(y), ctypes.POINTER(ctypes.c_float))
            result = torch.from_numpy(np.ctypeslib.as_array(result, (batch, rows)))

            def run(input: Tensor) -> Tensor:
                ctypes.memmove(ggml.ggml_get_data(x), input.data_ptr(), 4 * batch * fan)
                ggml.ggml_graph_compute(graph, ctypes.byref(plan))
                return result

            run.holds = work
            return run

        def product(x: Tensor) -> Tensor:
            if len(x) not in plans:
                plans[len(x)] = planned(len(x))
            return plans[len(x)](x)

        return product

    return make


def pytorch_int8(engine: str) -> Callable[[Tensor, float, int], Product]:
    """PyTorch's int8 weights, with inputs quantized in each call."""

    def make(weight: Tensor, scale: float, _: int) -> Product:
        linear = nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight = nn.Parameter(weight.float() * scale)
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated in favour of torchao, whose CPU path is this one's
                model = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)
        finally:
            torch.backends.quantized.engine = before

        def product(x: Tensor) -> Tensor:
            before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
            try:
                with torch.no_grad():
                    return model(x)
            finally:
                torch.backends.quantized.engine = before

        return product

    return make


ENGINES = {
    "ggml TQ2_0": Engine(2.0625, ("ggml",), ggml_type("TQ2_0")),
    "ggml TQ1_0": Engine(1.6875, ("ggml",), ggml_type("TQ1_0")),
    "ONNX Runtime MatMulNBits, 2 bits": Engine(2 + 32 / GROUP, ("onnx", "onnxruntime"), onnxruntime_2bit),
    "OpenVINO u2": Engine(2 + 16 / GROUP, ("openvino",), openvino_u2),
    "PyTorch int8, oneDNN": Engine(8, ("torch",), pytorch_int8("onednn")),
    "PyTorch int8, x86": Engine(8, ("torch",), pytorch_int8("x86")),
}


def versions() -> dict[str, str]:
    """The engines' packages that are there, by the names under which they are distributed."""
    found = importlib.metadata.packages_distributions()
    modules = {module for _, engine in installed() for module in engine.needs}
    return {name: importlib.metadata.version(name) for module in sorted(modules) for name in found[module][:1]}


def installed() -> Iterator[tuple[str, Engine]]:
    """The engines whose packages are there, by name."""
    for name, engine in ENGINES.items():
        if all(importlib.util.find_spec(package) for package in engine.needs):
            yield name, engine
