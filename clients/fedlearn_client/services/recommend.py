"""``Recommend``: rankings for apps and for the phone maker's surface."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.errors import SignalRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.hooks import Caller
from fedlearn_client.recommend import Recommender
from fedlearn_client.services import checks


@dataclass(frozen=True, slots=True)
class RecommendServicer:
    """Checks requests and hands them to the recommender."""

    recommender: Recommender

    def get(self, caller: Caller, request: pb.GetRequest) -> pb.GetReply:
        """Rank."""
        if request.count > limits.RANKED_ITEMS:
            raise SignalRefused(f"count: must be 0 to {limits.RANKED_ITEMS}; 0 means {limits.RANKED_ITEMS_DEFAULT}.")
        purpose = checks.short_name(request.purpose, "purpose")
        ranking = self.recommender.get(caller, purpose, request.count or limits.RANKED_ITEMS_DEFAULT)
        used = [pb.UsedSource(app=one.app, data_type=checks.DATA_TYPE_NUMBERS[one.data_type]) for one in ranking.used]
        return pb.GetReply(ranking_id=ranking.id, items=ranking.items, used=used)

    def feedback(self, caller: Caller, request: pb.FeedbackRequest) -> pb.FeedbackReply:
        """Take in a choice."""
        self.recommender.feedback(caller, request.ranking_id, request.item)
        return pb.FeedbackReply()
