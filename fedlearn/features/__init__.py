"""Queries and match features: pure numpy, the same code on a phone and in simulation. Spec: docs/features.md."""

from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query, make_query_from, read_message
from fedlearn.features.match import FEATURES, FeatureSpec, feature_mask, match, match_all
from fedlearn.features.query import Query
from fedlearn.features.said import Said, said_bytes, said_from_bytes
from fedlearn.features.store import QueryStore, QueryStoreWriter

__all__ = [
    "FEATURES",
    "CatalogueIndex",
    "FeatureSpec",
    "Query",
    "QueryStore",
    "QueryStoreWriter",
    "Said",
    "feature_mask",
    "make_query",
    "make_query_from",
    "match",
    "match_all",
    "read_message",
    "said_bytes",
    "said_from_bytes",
]
