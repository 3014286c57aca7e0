import pytest
from .test_embedded import broker, test_records_become_answers_and_sigterm_drains, test_a_killed_worker_loses_nothing
@pytest.fixture
def client(): return "confluent-kafka"
