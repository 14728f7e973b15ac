"""Talking to the Hub: listings by huggingface_hub, files through its HTTP session. Knows no folder.

The only file that imports huggingface_hub, and only when a connection is wanted: what is here needs neither.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from bloomery.environment import hub_endpoint
from bloomery.errors import BloomeryError, CheckpointError, UsageError
from bloomery.hub.repository import Listing, RemoteFile, digest_of
from bloomery.log import logger

TOKENS = "https://huggingface.co/settings/tokens"
MOST_REDIRECTS = 10
LARGEST_INDEX = 256 * 2**20
Result = TypeVar("Result")


class Interrupted(Exception):
    """What may go well at the next attempt: a cut connection, a busy server. `wait`: seconds that the server asks for.

    `silent` when nobody answered at all.
    """

    def __init__(self, reason: str, wait: float | None = None, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.silent = silent


@dataclass(frozen=True)
class Patience:
    """How often something is tried without getting further, and how many seconds lie between: `first`, then doubled."""

    tries: int = 6
    first: float = 1.0
    longest: float = 300.0

    def pause(self, failures: int, asked: float | None) -> float:
        """Seconds to wait after so many failures; a server that asks for more gets it, up to `longest`."""
        return min(self.longest, max(asked or 0.0, self.first * 2 ** (failures - 1)))


DEFAULT_PATIENCE = Patience()


class HubClient:
    """One address of the Hub and one token.

    Args:
        token: None takes HF_TOKEN or the one that huggingface_hub has stored.

    Raises:
        UsageError: huggingface_hub is not installed, or the token cannot be one.
    """

    def __init__(self, token: str | None = None, patience: Patience = DEFAULT_PATIENCE) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise UsageError("the token is empty or holds characters that no token has: give it again, without quotes")
        try:
            import huggingface_hub
            import huggingface_hub.constants
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError:
            raise UsageError("fetching needs the package huggingface_hub: pip install huggingface_hub") from None
        self.library = huggingface_hub
        self.errors = huggingface_hub.errors
        # The base of all that its HTTP library raises: which library that is depends on huggingface_hub's version.
        self.http_error: type[Exception] = self.errors.HfHubHTTPError.__bases__[0]
        self.endpoint = hub_endpoint()
        if not re.match(r"https?://[\w.\[\]:-]+(/|$)", self.endpoint):
            raise UsageError(f"HF_ENDPOINT is '{self.endpoint}': give an address such as https://huggingface.co")
        self.patience = patience
        program: dict[str, Any] = {"library_name": "bloomery", "library_version": _version()}
        utils: Any = huggingface_hub.utils  # it does not declare what it exports
        self.headers: dict[str, str] = utils.build_hf_headers(token=token, **program)
        self.timeout = huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
        self.api = huggingface_hub.HfApi(self.endpoint, token, **program)

    def listing(self, model: str, revision: str | None = None) -> Listing:
        """What a repository holds at a revision (a branch, a tag or a commit; None: its main branch).

        Raises:
            UsageError: no such repository or revision, or it is not open to this token.
            CheckpointError: the server does not answer, or not as a Hub does.
        """

        def ask() -> Listing:
            with self._explained(model, revision):
                details: dict[str, Any] = {"revision": revision, "files_metadata": True, "timeout": self.timeout}
                info = self.api.model_info(model, **details)
                if info.id != model and any(sibling.size is None for sibling in info.siblings or ()):
                    # It was renamed, and the redirect to its new name has lost what we asked for.
                    info = self.api.model_info(info.id, **details)
                return self._checked(info, model, revision)

        return self._again(ask)

    def url(self, listing: Listing, file: RemoteFile) -> str:
        return self.library.hf_hub_url(listing.model, file.path, revision=listing.sha, endpoint=self.endpoint)

    def page(self, model: str) -> str:
        """Where a person reads about a model and accepts its terms."""
        return f"{self.endpoint}/{model}"

    @contextmanager
    def get(self, listing: Listing, file: RemoteFile, headers: Mapping[str, str]) -> Iterator[Any]:
        """The response to a GET of a file, wherever the Hub redirects to, its body not yet read: 200, 206 or 416.

        The token goes to the Hub's own address only.

        Raises:
            Interrupted: the connection was cut, also while the body was read, or the server is busy.
            UsageError, CheckpointError: it will not be given; says what to do.
        """
        url = self.url(listing, file)
        # What is compressed on the way has no byte ranges of the file.
        sent = self.headers | {"accept-encoding": "identity"} | dict(headers)
        with self._explained(listing.model, listing.sha):
            for _ in range(MOST_REDIRECTS):
                if _origin(url) != _origin(self.endpoint):
                    sent.pop("authorization", None)
                session = self.library.get_session()
                options: dict[str, Any] = {"headers": sent, "follow_redirects": False, "timeout": self.timeout}
                with session.stream("GET", url, **options) as response:
                    if not response.has_redirect_location:
                        self._check(response, url)
                        yield response
                        return
                    url = _redirected(url, response.headers["location"])
        raise CheckpointError(f"{self.page(listing.model)}: {file.path} is redirected in circles: try again later")

    def read(self, listing: Listing, file: RemoteFile) -> bytes:
        """A small file's content, checked against its digest.

        Raises: as `get`, and CheckpointError where the content is not what the listing says.
        """
        if file.size > LARGEST_INDEX:
            raise CheckpointError(f"{listing.model}: {file.path} has {file.size} bytes, too many for an index")

        def ask() -> bytes:
            content = b""
            with self.get(listing, file, {}) as response:
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > file.size:
                        break
            return content

        content = self._again(ask)
        if len(content) != file.size or digest_of(file, content) != file.digest:
            raise CheckpointError(f"{listing.model}: {file.path} is not what the Hub lists: run it again")
        return content

    def _again(self, ask: Callable[[], Result]) -> Result:
        failures = 0
        while True:
            try:
                return ask()
            except Interrupted as cut:
                failures += 1
                if cut.silent or failures >= min(3, self.patience.tries):  # somebody sits there and waits
                    raise CheckpointError(self._no_answer(cut)) from None
                pause = self.patience.pause(failures, cut.wait)
                logger.info("%s: %s; again in %.0f s", self.endpoint, cut, pause)
                time.sleep(pause)

    def _no_answer(self, cut: Interrupted) -> str:
        remedy = "check the network and HF_ENDPOINT, or use what is here with --offline"
        return f"{self.endpoint} does not answer as it should ({cut}): {remedy}"

    def _check(self, response: Any, url: str) -> None:
        _refuse_busy(response)
        if response.status_code != 416:
            if response.status_code >= 400 and _origin(url) != _origin(self.endpoint):
                # The Hub let us through: its link to another server has expired, and a new one may do.
                raise Interrupted(f"answer {response.status_code} from {urlsplit(url).hostname}")
            self.library.hf_raise_for_status(response)

    @contextmanager
    def _explained(self, model: str, revision: str | None) -> Iterator[None]:
        """Turn what huggingface_hub and its HTTP library raise into our errors, or into Interrupted."""
        try:
            yield
        except self.errors.HfHubHTTPError as error:
            _refuse_busy(error.response)
            raise self._refusal(error, model, revision) from None
        except self.http_error as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            silent = type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError")
            raise Interrupted(reason, silent=silent) from None
        except self.errors.HFValidationError as error:
            raise UsageError(f"'{model}' is no name of a model on the Hub ({error}): give ORGANISATION/NAME") from None
        except BloomeryError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # what huggingface_hub could not take apart
            raise CheckpointError(f"{self.endpoint} does not speak as a Hub ({error!r}): check HF_ENDPOINT") from None
        except self.errors.OfflineModeIsEnabled:
            raise CheckpointError(f"{model}: huggingface_hub is offline: start again without HF_HUB_OFFLINE") from None

    def _refusal(self, error: Any, model: str, revision: str | None) -> BloomeryError:
        status, page = error.response.status_code, self.page(model)
        with_token = "authorization" in error.response.request.headers
        if isinstance(error, self.errors.GatedRepoError):
            how = "then run it again" if with_token else f"then give a token of yours ({TOKENS}) as --token or HF_TOKEN"
            return UsageError(f"{model} is gated: accept its terms at {page} with your account, {how}")
        if isinstance(error, self.errors.RevisionNotFoundError):
            return UsageError(f"{model} has no revision '{revision}': see its branches and tags at {page}/tree/main")
        if isinstance(error, self.errors.RemoteEntryNotFoundError):
            return CheckpointError(f"{error.response.url} is gone since it was listed: run it again")
        if status == 401 and with_token:
            return UsageError(f"the token was not accepted for {model}: make a new one at {TOKENS}")
        if status in (401, 404):
            private = "needs another token" if with_token else f"needs a token ({TOKENS}) as --token or HF_TOKEN"
            return UsageError(f"no model '{model}' at {self.endpoint}: check the spelling; a private one {private}")
        if status == 403:
            said = error.server_message or "forbidden"
            return UsageError(f"{model} is not open to this token ({said}): give it the right to read at {TOKENS}")
        said = error.server_message or "no reason given"
        return CheckpointError(f"{page}: answer {status} ({said}): try again later")

    def _checked(self, info: Any, model: str, revision: str | None) -> Listing:
        """What the server said, which may be anything, as a listing."""
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40,64}", info.sha):
            raise CheckpointError(f"{self.page(model)} gives no commit: is {self.endpoint} a Hub (HF_ENDPOINT)?")
        if revision is not None and re.fullmatch(r"[0-9a-f]{40,64}", revision) and revision != info.sha:
            raise CheckpointError(f"{self.page(model)} gives commit {info.sha}, not {revision}: use another server")
        files = tuple(self._file(sibling, model) for sibling in info.siblings or ())
        if not files:
            raise UsageError(f"{model} is an empty repository: choose another, or another revision")
        license, terms = _license(info)
        return Listing(model, info.sha, files, license, terms or self.page(model), bool(info.gated))

    def _file(self, sibling: Any, model: str) -> RemoteFile:
        size, digest = sibling.size, f"git-sha1:{sibling.blob_id}"
        if sibling.lfs is not None:
            size, digest = sibling.lfs.size, f"sha256:{sibling.lfs.sha256}"
        sized = type(size) is int and size >= 0
        if not sized or not re.fullmatch(r"(git-sha1:[0-9a-f]{40}|sha256:[0-9a-f]{64})", digest):
            raise CheckpointError(
                f"{self.page(model)} does not say size and digest of {sibling.rfilename!r}, so that it could not be "
                "checked: use another server (HF_ENDPOINT)"
            )
        return RemoteFile(sibling.rfilename, size, digest)


def _refuse_busy(response: Any) -> None:
    """Raises Interrupted for an answer that says no more than: not now."""
    if response.status_code in (408, 429) or response.status_code >= 500:
        asked = response.headers.get("retry-after", "")
        raise Interrupted(f"answer {response.status_code}", float(asked) if asked.isdigit() else None)


def _version() -> str:
    try:
        return metadata.version("bloomery")
    except metadata.PackageNotFoundError:  # run from its source
        return "source"


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or (url.startswith("https:") and scheme != "https"):
        raise CheckpointError(f"{url} is redirected to {scheme}, which is not safe: use another server (HF_ENDPOINT)")
    return target


def _license(info: Any) -> tuple[str | None, str | None]:
    """Name of the licence, and where its text is, from the model card or from the tags."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    named = [word for word in (card.get("license_name"), card.get("license")) if word not in (None, "other")]
    if not named:
        named = [tag.partition(":")[2] for tag in info.tags or () if str(tag).startswith("license:")]
    license = named[0] if named else None
    if isinstance(license, list):
        license = ", ".join(map(str, license))
    link = card.get("license_link")
    return (str(license) if license else None), (link if str(link).startswith("https://") else None)
