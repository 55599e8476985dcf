"""``python -m cloud_vllm`` runs the gateway; ``python -m cloud_vllm keys`` manages API keys."""

from esrt.scripts import gateway

# Engine processes of multiprocessing import this module under another name.
if __name__ == "__main__":
    gateway()
