"""Flower's SuperLink with two doors: one for the nodes, one for its owner.

    FLWR_HOME=/srv/hanse/flower python -m federated.flower.superlink --host 0.0.0.0 --port 8000 --control-port 8001 \
        --ssl-certfile server.pem --ssl-keyfile server.key --ssl-ca-certfile ca.pem

`flower-superlink` serves three APIs on one port: Fleet for nodes, Control for `flwr`, Runtime for the processes of
apps. Its Control API asks for no credential, and whoever can start a run runs code on the server. Here `--host` and
`--port` serve the Fleet API alone, and only to nodes whose key is registered. Control and Runtime listen on 127.0.0.1
alone. Other users of this machine reach that address too, so both also ask for a secret: the owner's token, which
`flwr` finds in FLWR_HOME, and the SuperExec's, in a file beside it. Both are new at every start.
"""

import argparse
import hmac
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from logging import INFO
from pathlib import Path

import uvicorn
from fastapi import Response
from flwr.cli.constant import ACCESS_TOKEN_STORE_KEY, AUTHN_TYPE_STORE_KEY, REFRESH_TOKEN_STORE_KEY
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    FLWR_INTERNAL_GRPC_CONTROL_API,
    FLWR_INTERNAL_GRPC_FLEET_API,
    ISOLATION_MODE_PROCESS,
    TRANSPORT_TYPE_GRPC_RERE,
    AuthnType,
)
from flwr.supercore import log
from flwr.supercore.auth.typing import AccountAuthLoginDetails, AccountInfo
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.credential_store import get_credential_store
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.supercore.utils import get_flwr_home
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import HanseError, ResourceError
from federated.flower.certificates import private_folder, write_private
from federated.flower.version import require

OWN_HOST = "127.0.0.1"  # where Control and Runtime listen
FOR_NODES = "/v1/fleet/"  # the paths of the Fleet API
HEALTH = "/health"


class Doors:
    """The SuperLink's application: all of it at the owner's port, and the Fleet API everywhere else.

    Which port a request came to is asked of its socket, so nothing that it says of itself opens a door.
    """

    def __init__(self, app: ASGIApp, control_port: int) -> None:
        self.app, self.owners = app, (OWN_HOST, control_port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope):
            await self.app(scope, receive, send)
        else:
            await Response("Only nodes are served here.", status_code=404)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        is_owners = tuple(scope["server"] or ()) == self.owners
        return is_owners or scope["path"] == HEALTH or scope["path"].startswith(FOR_NODES)


class OwnersToken(NoOpControlAuthnPlugin):
    """Lets those in who have the token. To Flower they are the one account that a SuperLink without accounts has."""

    def __init__(self, token: str) -> None:
        self.token = token

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        """Whether the request carries the token."""
        given = str(dict(metadata).get(ACCESS_TOKEN_KEY, ""))
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return False, None
        return super().validate_tokens_in_metadata(metadata)

    def refresh_tokens(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[Sequence[tuple[str, str | bytes]] | None, AccountInfo | None]:
        """Never: a new token comes with a new start."""
        return None, None

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        """Says what to do in place of a login."""
        advice = (
            "There is no login here: run flwr on the server, with the FLWR_HOME that its SuperLink was started with."
        )
        raise FlowerError(ApiErrorCode.NO_ACCOUNT_AUTH, advice, public_details=advice)


class Lifespan(SuperLinkLifespan):
    """Starts the SuperExec with its secret, which Flower does not when it starts one by itself."""

    def startup(self) -> None:
        """Starts it once all else is ready."""
        super().startup()
        address, ca = f"{OWN_HOST}:{self.config.port}", str(self.config.ssl_ca_certfile)
        command = ["flower-superexec", "--root-certificates", ca, "--runtime-api-address", address]
        command += [
            "--parent-pid",
            str(os.getpid()),
            "--superexec-auth-secret-file",
            str(_secret_file(self.config.port)),
        ]
        self.superexec_process = subprocess.Popen(command, start_new_session=True)


def main(words: Sequence[str] | None = None) -> None:
    """Serves until it is told to end. Raises ResourceError if a port or a certificate cannot be used."""
    require()
    told = _arguments().parse_args(words)
    for variable in (FLWR_INTERNAL_GRPC_CONTROL_API, FLWR_INTERNAL_GRPC_FLEET_API):
        os.environ.pop(variable, None)  # servers on ports of their own, behind neither door
    sockets = [_listen(told.host, told.port), _listen(OWN_HOST, told.control_port)]
    token, secret = secrets.token_urlsafe(32), secrets.token_bytes(32)
    private_folder(home := get_flwr_home())
    write_private(_secret_file(told.control_port), secret)
    app = create_app(_config(told, OwnersToken(token), secret), Lifespan)
    _give_owner(f"{OWN_HOST}:{told.control_port}", token)
    config = uvicorn.Config(
        Doors(app, told.control_port),
        ssl_certfile=told.ssl_certfile,
        ssl_keyfile=told.ssl_keyfile,
        log_config=get_uvicorn_log_config(console_handler.level),
        proxy_headers=False,
        ws="none",
    )
    log(INFO, "Nodes: %s:%s. Owner: %s:%s, FLWR_HOME=%s", told.host, told.port, OWN_HOST, told.control_port, home)
    uvicorn.Server(config).run(sockets=sockets)


def _secret_file(control_port: int) -> Path:
    return get_flwr_home() / f"superexec-{control_port}.key"


def _give_owner(address: str, token: str) -> None:
    """Puts the token where `flwr` looks for it. Flower's store writes a file that only its owner can read."""
    store = get_credential_store()
    for key, value in (
        (AUTHN_TYPE_STORE_KEY, AuthnType.OIDC),  # the one kind of account for which `flwr` sends a token
        (ACCESS_TOKEN_STORE_KEY, token),
        (REFRESH_TOKEN_STORE_KEY, "none"),
    ):
        store.set(key % address, value.encode())


def _config(told: argparse.Namespace, owner: OwnersToken, secret: bytes) -> SuperLinkLifespanConfig:
    files = [Path(file) for file in (told.ssl_ca_certfile, told.ssl_certfile, told.ssl_keyfile)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ResourceError(f"superlink: {missing[0]} is missing; name an existing file, or issue certificates")
    ca, cert, key = files
    return SuperLinkLifespanConfig(
        host=OWN_HOST,
        port=told.control_port,
        insecure=False,
        certificates=(ca.read_bytes(), cert.read_bytes(), key.read_bytes()),
        ssl_ca_certfile=str(ca),
        ssl_certfile=str(cert),
        ssl_keyfile=str(key),
        authn_plugin=owner,
        enable_supernode_auth=True,
        isolation=ISOLATION_MODE_PROCESS,  # `Lifespan` starts the SuperExec
        superexec_auth_secret=secret,
        runtime_dependency_install=False,
        database=told.database,
        simulation=False,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,  # a name in its answers; it speaks HTTP
        fleet_api_address=None,
        control_address="",
        health_server_address=None,
        artifact_provider=None,
        enable_event_log=False,
        event_log_plugin=None,
        fleet_event_log_plugin=None,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ResourceError(
            f"superlink: port {port} on {host} cannot be used ({error.strerror}); name another"
        ) from error


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m federated.flower.superlink", description="A SuperLink's two doors."
    )
    parser.add_argument("--host", default=OWN_HOST, help="where nodes reach it; 0.0.0.0 for every address")
    parser.add_argument("--port", type=int, default=8000, help="for nodes: the Fleet API alone")
    parser.add_argument("--control-port", type=int, default=8001, help=f"for its owner, on {OWN_HOST} alone")
    parser.add_argument("--ssl-certfile", required=True, help="the server's certificate")
    parser.add_argument("--ssl-keyfile", required=True, help="its private key")
    parser.add_argument("--ssl-ca-certfile", required=True, help="its issuer's certificate")
    parser.add_argument(
        "--database", default=FLWR_IN_MEMORY_DB_NAME, help="a file for runs and nodes; memory if not set"
    )
    return parser


if __name__ == "__main__":
    try:
        main()
    except HanseError as error:
        sys.exit(str(error))
