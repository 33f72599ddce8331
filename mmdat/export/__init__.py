"""Models as ONNX files: backbones, classifiers, segmentors and detectors, with what they do after the heads."""

from .tool import export_onnx

__all__ = ['export_onnx']
