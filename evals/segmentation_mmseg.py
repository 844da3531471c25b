"""What the evaluation uses of mmsegmentation, imported without the notices it prints."""

import contextlib
import io
import logging
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cv2
    from mmcv.transforms import Compose
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.model import BaseModule
    from mmengine.structures import PixelData
    from mmseg.datasets import BaseSegDataset
    from mmseg.evaluation.metrics import IoUMetric
    from mmseg.models import EncoderDecoder
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

# It would log the mean of every parameter after the initialisation of the heads.
MMLogger.get_current_instance().setLevel(logging.WARNING)
# Parallelism is over the loader's processes; OpenCV would start a thread a core in each of them.
cv2.setNumThreads(0)

__all__ = [
    "MODELS",
    "BaseModule",
    "BaseSegDataset",
    "Compose",
    "ConfigDict",
    "EncoderDecoder",
    "IoUMetric",
    "PixelData",
    "SegDataSample",
    "cv2",
]
