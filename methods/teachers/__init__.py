"""Frozen networks that give targets (CLIP, tokenizers) and the stages that make them."""

from methods.teachers.clip import ClipTraining, ReleasedClip
from methods.teachers.dalle import DvaeTraining, ReleasedDalle
from methods.teachers.encoder import PretrainedEncoder, ReleasedEncoder
from methods.teachers.folder import Teacher, Tokenizer, load_teacher, load_tokenizer
from methods.teachers.vqkd import ReleasedVqkd, VqkdTraining

__all__ = [
    "ClipTraining",
    "DvaeTraining",
    "PretrainedEncoder",
    "ReleasedClip",
    "ReleasedDalle",
    "ReleasedEncoder",
    "ReleasedVqkd",
    "Teacher",
    "Tokenizer",
    "VqkdTraining",
    "load_teacher",
    "load_tokenizer",
]
