"""Figures of features and logits: tensors in, numbers out."""

from selfsup.measures.features import alignment, effective_rank, encoder_floors, feature_spread, uniformity
from selfsup.measures.knn import knn_top1, votes
from selfsup.measures.top_k import accuracy, top_k_hits

__all__ = [
    "accuracy",
    "alignment",
    "effective_rank",
    "encoder_floors",
    "feature_spread",
    "knn_top1",
    "top_k_hits",
    "uniformity",
    "votes",
]
