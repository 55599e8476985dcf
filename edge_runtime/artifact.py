"""Exported artifacts: manifest, encoder and codec tables, read from one folder."""

from dataclasses import dataclass
from pathlib import Path

from edge_runtime.backends import DEFAULT_THREADS, Backend, load_backend
from esrt.manifest import Manifest, read_manifest
from esrt.wire import CODEC_TABLES_FILE, CodecTables, read_codec_tables


@dataclass(frozen=True)
class Artifact:
    """An artifact whose manifest has been read; the encoder and the tables load on demand."""

    folder: Path
    manifest: Manifest

    def backend(self, *, threads: int = DEFAULT_THREADS) -> Backend:
        """Verify the artifact's files and load the encoder.

        Raises:
            ArtifactError: as for `edge_runtime.backends.load_backend`.
        """
        return load_backend(self.folder, self.manifest, threads=threads)

    def codec_tables(self) -> CodecTables | None:
        """Tables of the transform codecs; ``None`` if the artifact has none.

        Raises:
            CheckpointError: the file is damaged.
        """
        if CODEC_TABLES_FILE not in self.manifest.files:
            return None
        return read_codec_tables(self.folder / CODEC_TABLES_FILE, self.manifest.fingerprint)


def open_artifact(folder: Path) -> Artifact:
    """Read an artifact's manifest.

    Raises:
        ArtifactError: the manifest is missing or does not fit the schema.
    """
    return Artifact(folder, read_manifest(folder, verify=False))
