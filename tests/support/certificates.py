"""Certificates as QEMU, libnbd and nbdkit have them in directories, and clients' TLS by them."""

import ssl
from pathlib import Path

import trustme


class Authority:
    """One that signs the certificates of a server and of clients."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.server = directory / "server"
        self.client = directory / "client"
        for where, kind in ((self.server, "server"), (self.client, "client")):
            where.mkdir()
            certificate = self._ca.issue_cert("localhost", "127.0.0.1")
            self._ca.cert_pem.write_to_path(where / "ca-cert.pem")
            certificate.private_key_pem.write_to_path(where / f"{kind}-key.pem")
            (where / f"{kind}-cert.pem").write_bytes(
                b"".join(each.bytes() for each in certificate.cert_chain_pems)
            )

    def context(self, *, shows_certificate: bool = True) -> ssl.SSLContext:
        """Of a client."""
        context = ssl.create_default_context(cafile=str(self.client / "ca-cert.pem"))
        if shows_certificate:
            context.load_cert_chain(self.client / "client-cert.pem", self.client / "client-key.pem")
        return context
