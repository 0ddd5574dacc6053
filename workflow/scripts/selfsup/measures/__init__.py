"""Figures of features and logits: tensors in, numbers out."""

from selfsup.measures.average_precision import average_precision, mean_average_precision
from selfsup.measures.equivariance import equivariance
from selfsup.measures.features import alignment, effective_rank, encoder_floors, feature_spread, uniformity
from selfsup.measures.knn import knn_top1, votes
from selfsup.measures.per_class import hits_per_class, mean_per_class
from selfsup.measures.top_k import accuracy, top_k_hits

__all__ = [
    "accuracy",
    "alignment",
    "average_precision",
    "effective_rank",
    "encoder_floors",
    "equivariance",
    "feature_spread",
    "hits_per_class",
    "knn_top1",
    "mean_average_precision",
    "mean_per_class",
    "top_k_hits",
    "uniformity",
    "votes",
]
