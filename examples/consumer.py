"""Print verdicts as they come: python consumer.py localhost:9092 fifa.verdicts"""

import sys

from kafka import KafkaConsumer
from pydantic import BaseModel


class Verdict(BaseModel):  # what you need of it; pydantic ignores the rest, and what later minor versions add
    id: str  # the frame's topic/partition/offset: at least once may repeat it, so write by it
    label: str
    fake_score: float | None


options = {"group_id": "example", "auto_offset_reset": "earliest", "isolation_level": "read_committed", "session_timeout_ms": 6000}
for record in KafkaConsumer(sys.argv[2], bootstrap_servers=sys.argv[1], **options):
    print(Verdict.model_validate_json(record.value), flush=True)
