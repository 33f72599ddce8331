"""A whole exported model in float32 and int8, by onnxruntime and OpenVINO: figures on the test data, and time.

    pip install openvino nncf
    python benchmarks/deployment.py configs/demo/maskrcnn_datnano_shapes.py maskrcnn.onnx

int8 is calibrated on images of the training data. The figures are those of the config's own evaluators. Times are
processor time of one thread, for the inference alone, with quartiles; the four ways take turns with every image.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import InstanceData, PixelData

from mmdat.apis.toolbox import toolbox
from mmdat.config.load import load_config
from mmdat.config.walk import innermost_datasets

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
from infer_onnx import paste

Inputs = dict[str, np.ndarray]
Model = Callable[[Inputs], Inputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the exported model')
    parser.add_argument('model', help='file of tools/export_onnx.py --whole')
    parser.add_argument('--calibrate', type=int, default=64, help='training images (default: %(default)s)')
    args = parser.parse_args()
    cfg = load_config(args.config)
    with toolbox(cfg.default_scope), tempfile.TemporaryDirectory() as directory:
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        calibration = [inputs for inputs, _ in read(cfg, training_data(cfg), args.model, args.calibrate)]
        folded = fold_constants(args.model, directory)
        models = {
            'onnxruntime, float32': onnxruntime_model(args.model),
            'onnxruntime, int8': onnxruntime_int8(folded, calibration, directory),
            'OpenVINO, float32': openvino_model(args.model),
            'OpenVINO, int8': openvino_int8(folded, calibration),
        }
        report(models, evaluate(cfg, dataset, args.model, models))


def training_data(cfg: Config) -> Any:
    """The training images, prepared as those of the test."""
    train = next(innermost_datasets(cfg.train_dataloader.dataset))
    return DATASETS.build(dict(train, pipeline=cfg.test_dataloader.dataset.pipeline))


def read(cfg: Config, dataset: Any, path: str, count: int) -> Iterator[tuple[Inputs, Any]]:
    """The first images as inputs of the file, each with its sample, the truth in it."""
    import onnxruntime

    nodes = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).get_inputs()
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    for index in range(min(count, len(dataset))):
        item = dataset[index]
        batch = preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
        image, sample = batch['inputs'].numpy(), batch['data_samples'][0]
        pad = [(0, whole - side) for whole, side in zip(nodes[0].shape, image.shape)]
        yield dict(zip((node.name for node in nodes), (np.pad(image, pad), np.float32(sample.img_shape)))), sample


def onnxruntime_model(path: str) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    names = [node.name for node in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs)))


def fold_constants(path: str, directory: str) -> str:
    """A file of the same model for quantisers, which take what is computed from weights alone for activations.

    NNCF 3.4 even stops at the bias tables of neighbourhood attention.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = str(Path(directory, 'folded.onnx'))
    quant_pre_process(path, folded, skip_symbolic_shape=True)
    return folded


def onnxruntime_int8(path: str, calibration: list[Inputs], directory: str) -> Model:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.inputs = iter(calibration)

        def get_next(self):
            return next(self.inputs, None)

    quantized = str(Path(directory, 'int8.onnx'))
    quantize_static(path, quantized, Reader(), op_types_to_quantize=['Conv', 'MatMul', 'Gemm'], per_channel=True)
    return onnxruntime_model(quantized)


def openvino_model(model: Any) -> Model:
    import openvino

    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
    compiled = openvino.Core().compile_model(model, 'CPU', settings)

    def run(inputs: Inputs) -> Inputs:
        found = zip(compiled.outputs, compiled(inputs).to_tuple())
        return {name: value for node, value in found for name in node.names}  # an output may have several

    return run


def openvino_int8(path: str, calibration: list[Inputs]) -> Model:
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    data = nncf.Dataset(calibration)
    return openvino_model(nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER))


def evaluate(cfg: Config, dataset: Any, path: str, models: dict[str, Model]) -> dict[str, tuple[dict, list[float]]]:
    """Figures of each model, and its seconds for each image."""
    evaluators = {name: Evaluator(cfg.test_evaluator) for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for evaluator in evaluators.values():
        evaluator.dataset_meta = dataset.metainfo
    for inputs, sample in read(cfg, dataset, path, len(dataset)):
        for name, model in models.items():
            start = time.process_time()
            found = model(inputs)
            seconds[name].append(time.process_time() - start)
            evaluators[name].process([predicted(sample, found)])
    return {name: (evaluators[name].evaluate(len(dataset)), seconds[name]) for name in models}


def predicted(sample: Any, found: Inputs) -> Any:
    """A copy of a sample with what a model found, in pixels of the image file."""
    sample = sample.clone()
    if 'logits' in found:
        height, width = sample.ori_shape
        rows, cols = sample.img_shape
        logits = torch.from_numpy(found['logits'][..., :rows, :cols])
        logits = torch.nn.functional.interpolate(logits, (height, width), mode='bilinear')
        sample.pred_sem_seg = PixelData(data=logits.argmax(1))
        return sample
    boxes = found['boxes'] / np.float32([*sample.scale_factor] * 2)
    objects = dict(bboxes=boxes, scores=found['scores'], labels=found['labels'])
    if 'masks' in found:
        masks = [paste(mask, box, *sample.ori_shape) for mask, box in zip(found['masks'], boxes)]
        objects['masks'] = np.array(masks).reshape(-1, *sample.ori_shape)
    sample.pred_instances = InstanceData(**{name: torch.from_numpy(value) for name, value in objects.items()})
    return sample


def report(models: dict[str, Model], results: dict[str, tuple[dict, list[float]]]) -> None:
    names = [name for name in next(iter(results.values()))[0] if name.endswith(('mIoU', 'mAcc', '_mAP', '_mAP_50'))]
    print('| | ' + ' | '.join(names) + ' | milliseconds | ratio of times |\n|' + '---|' * (len(names) + 3))
    reference = statistics.median(next(iter(results.values()))[1])
    for way in models:
        figures, seconds = results[way]
        low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1000
        times = f'{middle:.1f} ({low:.1f} to {high:.1f}) | {middle / reference / 1000:.2f}'
        print(f'| {way} | ' + ' | '.join(f'{figures[name]:.3f}' for name in names) + f' | {times} |')


if __name__ == '__main__':
    main()
