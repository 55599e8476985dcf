"""The OpenAPI document in docs/."""

from cloud_vllm.api.openapi import FILE, document
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint


def test_the_document_in_docs_is_up_to_date(checkpoint: Checkpoint) -> None:
    kept = FILE.read_text("utf-8")
    assert kept == document(Settings(checkpoint=checkpoint.folder)), (
        "write it again: python -m cloud_vllm.api.openapi"
    )
