"""Which step towards a broker fails, why, and the setting to change.

kafka-python answers every mistake in TLS and SASL with "Unable to bootstrap" after the whole timeout. So the steps are walked here once, one by one,
with its own message classes and SASL mechanisms, before a client is made.
"""

import contextlib
import enum
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError, for_code
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest, FindCoordinatorRequest, MetadataRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from fifa_stream.config import ConfigError, KafkaSettings
from fifa_stream.oauth import TokenError

DIAGNOSIS_TIMEOUT_S = 4.0
"""For all addresses together; they are walked at the same time."""
SECOND_LOOK_S = 1.0
"""For asking a port what it speaks, after an answer that was none."""
MAX_ANSWER_BYTES = 1 << 24
"""TLS or HTTP read as the length of a Kafka message is more."""

UNTRUSTED = {2, 18, 19, 20, 21}
"""X509_V_ERR_ codes of OpenSSL: signed by nobody that we trust."""
NOT_YET_VALID, EXPIRED = 9, 10
OTHER_NAME = {62, 64}

UNKNOWN_TOPIC, TOPIC_FORBIDDEN, GROUP_FORBIDDEN, UNSUPPORTED_MECHANISM, ILLEGAL_SASL_STATE = 3, 29, 30, 33, 34
READ, WRITE = 3, 4
"""AclOperation codes."""

OTHER_PORT = "check kafka.bootstrap_servers and kafka.security_protocol"


class Step(enum.StrEnum):
    """What lies between an address and the first record, in order."""

    ADDRESS = "address"
    DNS = "dns"
    TCP = "tcp"
    TLS = "tls"
    KAFKA = "kafka"
    SASL = "sasl"
    ACL = "acl"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step that was tried: what was found and, if it failed, what to change."""

    step: Step
    ok: bool
    why: str
    remedy: str = ""
    may_pass: bool = False
    """Failed, but waiting may help: the broker may be starting."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The steps towards one address; after a failed one none was tried."""

    address: str
    steps: tuple[StepResult, ...]

    @property
    def failure(self) -> StepResult | None:
        """The step that failed."""
        return next((step for step in self.steps if not step.ok), None)


def diagnose(kafka: KafkaSettings, *, access: bool = False, timeout_s: float = DIAGNOSIS_TIMEOUT_S) -> tuple[Diagnosis, ...]:
    """Walk the steps towards every address of `kafka.bootstrap_servers`; with `access` also ask what topics and group permit. Returns within
    `timeout_s`, whatever the network does. Raises ConfigError when the file of a secret is unreadable.
    """
    options = kafka.client_options()
    deadline = time.monotonic() + timeout_s
    walks = [_Walk(address, kafka, options, access=access, deadline=deadline) for address in options["bootstrap_servers"]]
    # Threads that are left behind when time is up: a name server that does not answer cannot be interrupted.
    threads = [threading.Thread(target=walk.run, name="diagnosis", daemon=True) for walk in walks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(walk.diagnosis() for walk in walks)


class _Failed(Exception):
    """Ends a walk."""

    def __init__(self, step: Step, why: str, remedy: str, *, may_pass: bool = False) -> None:
        super().__init__(why)
        self.result = StepResult(step, False, why, remedy, may_pass)


class _Link:
    """Requests and answers, one at a time, on a connected socket."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._protocol = KafkaProtocol(client_id="fifa-stream", receive_message_max_bytes=MAX_ANSWER_BYTES)
        self._newest: dict[int, int] = {}
        """Highest version of each kind of request that the broker knows."""

    def greet(self) -> None:
        """ApiVersions. Raises OSError, and KafkaError when the other side does not speak Kafka."""
        answer = self.ask(ApiVersionsRequest())
        self._newest = {key.api_key: key.max_version for key in answer.api_keys}

    def ask(self, request: Any, *, max_version: int = 1 << 15) -> Any:
        """The answer. Raises OSError, KafkaError."""
        request.API_VERSION = min(request.max_version, self._newest.get(request.API_KEY, 0), max_version)
        self._protocol.send_request(request)
        self._sock.settimeout(_left(self._deadline))
        with contextlib.suppress(ConnectionError):  # what the other side said before it closed is still to be read
            self._sock.sendall(self._protocol.send_bytes())
        while True:
            self._sock.settimeout(_left(self._deadline))
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("connection closed by the other side")
            for _, answer in self._protocol.receive_bytes(data):
                return answer


class _Walk:
    """The steps towards one address."""

    def __init__(self, address: str, kafka: KafkaSettings, options: Mapping[str, Any], *, access: bool, deadline: float) -> None:
        self._address, self._kafka, self._options, self._access = address, kafka, options, access
        self._began, self._deadline = time.monotonic(), deadline
        self._host, self._port = "", 0
        self._has_tls, self._has_sasl = kafka.security_protocol.endswith("SSL"), kafka.security_protocol.startswith("SASL")
        self._step = Step.ADDRESS
        self._results: list[StepResult] = []
        self._is_over = False
        self._fault: Exception | None = None
        """Of ours, not of the way."""

    def diagnosis(self) -> Diagnosis:
        """What is known by now, from any thread. Raises what the walk stumbled over."""
        if self._fault is not None:
            raise self._fault
        results = tuple(self._results)
        return Diagnosis(self._address, results if self._is_over else (*results, self._silence()))

    def run(self) -> None:
        """Walk until a step fails."""
        try:
            self._walk()
        except _Failed as failed:
            self._results.append(failed.result)
        except TimeoutError:
            self._results.append(self._silence())
        except OSError as error:
            self._results.append(StepResult(self._step, False, _text(error), "see the broker's log", may_pass=True))
        except KafkaError as error:
            self._results.append(StepResult(self._step, False, f"the answer is not Kafka's: {type(error).__name__}", OTHER_PORT))
        except Exception as error:  # carried to the caller: a thread that died would pass for a broker that hangs
            self._fault = error
        self._is_over = True

    def _walk(self) -> None:
        self._parse()
        self._passed("is host:port", Step.DNS)
        self._passed(self._resolve(), Step.TCP)
        with self._connect() as plain:
            if not self._has_tls:
                self._passed("connected", Step.KAFKA)
                self._talk(plain)
                return
            self._passed("connected", Step.TLS)
            context = self._tls_context()
            with self._handshake(context, plain) as encrypted:
                self._talk(encrypted)

    def _talk(self, sock: socket.socket) -> None:
        link = _Link(sock, self._deadline)
        self._greet(link, sock)
        if self._has_sasl:
            self._passed("speaks Kafka", Step.SASL)
            self._authenticate(link)
        answer = self._metadata(link)
        brokers = ", ".join(f"{broker.host}:{broker.port}" for broker in answer.brokers)
        if self._has_sasl:
            self._passed(f"authenticated by {self._kafka.sasl_mechanism}; brokers are advertised as {brokers}", Step.ACL)
        else:
            self._passed(f"speaks Kafka; brokers are advertised as {brokers}", Step.ACL)
        if self._access:
            self._passed(self._permissions(link, answer), Step.ACL)

    def _passed(self, why: str, following: Step) -> None:
        self._results.append(StepResult(self._step, True, why))
        self._step = following

    def _silence(self) -> StepResult:
        """No answer in time at the current step."""
        remedies = {
            Step.DNS: "check the name server, or kafka.bootstrap_servers",
            Step.TCP: "check firewalls and kafka.bootstrap_servers",
        }
        why = f"no answer within {self._deadline - self._began:.1f} s"
        return StepResult(self._step, False, why, remedies.get(self._step, f"the broker hangs, or this is another port; {OTHER_PORT}"), may_pass=True)

    def _parse(self) -> None:
        host, _, port = self._address.rpartition(":")
        self._host = host.removeprefix("[").removesuffix("]")
        if not self._host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise _Failed(Step.ADDRESS, "is not host:port", "write it like localhost:9092 in kafka.bootstrap_servers")
        self._port = int(port)

    def _resolve(self) -> str:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise _Failed(Step.DNS, f"{self._host!r} is not a host name", "mend kafka.bootstrap_servers") from None
        except socket.gaierror as error:
            # The name of a pod appears when it starts.
            raise _Failed(Step.DNS, f"no such host: {_text(error)}", "mend the host in kafka.bootstrap_servers", may_pass=True) from None
        return f"is {', '.join(sorted({str(place[0]) for *_, place in found}))}"

    def _connect(self) -> socket.socket:
        try:
            return socket.create_connection((self._host, self._port), timeout=_left(self._deadline))
        except TimeoutError:
            raise
        except OSError as error:
            raise _Failed(Step.TCP, _text(error), "start the broker, or mend kafka.bootstrap_servers", may_pass=True) from None

    def _tls_context(self) -> ssl.SSLContext:
        """As kafka-python makes it."""
        kafka = self._kafka
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if kafka.ssl_cafile is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(kafka.ssl_cafile)
        except OSError as error:
            raise _Failed(Step.TLS, f"kafka.ssl_cafile {str(kafka.ssl_cafile)!r} cannot be used: {_text(error)}", "give a PEM file") from None
        if kafka.ssl_certfile is not None and kafka.ssl_keyfile is not None:
            try:
                # Without a passphrase OpenSSL would ask for one at the terminal.
                context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, self._options.get("ssl_password", ""))
            except OSError as error:
                raise _unusable_certificate(kafka, error) from None
        return context

    def _handshake(self, context: ssl.SSLContext, plain: socket.socket) -> ssl.SSLSocket:
        plain.settimeout(_left(self._deadline))
        try:
            return context.wrap_socket(plain, server_hostname=self._host.rstrip("."))
        except TimeoutError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise self._distrusted(error) from None
        except OSError as error:
            if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
                raise self._alerted(error) from None
            if self._speaks_plain_kafka():
                raise _Failed(
                    Step.TLS,
                    f"this port speaks Kafka without TLS, and kafka.security_protocol is {self._kafka.security_protocol}",
                    f"set kafka.security_protocol to {'SASL_PLAINTEXT' if self._has_sasl else 'PLAINTEXT'}, or give the port of the TLS listener",
                ) from None
            raise _Failed(Step.TLS, f"the handshake broke off: {_text(error)}", OTHER_PORT, may_pass=True) from None

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> _Failed:
        reason = error.verify_message
        if error.verify_code in UNTRUSTED:
            cafile = self._kafka.ssl_cafile
            remedy = (
                "set kafka.ssl_cafile to the PEM file of the authority that signed it"
                if cafile is None
                else f"kafka.ssl_cafile {str(cafile)!r} does not hold the authority that signed it; give that one"
            )
            return _Failed(Step.TLS, f"the broker's certificate is not trusted: {reason}", remedy)
        if error.verify_code in OTHER_NAME:
            remedy = (
                "write a name that it holds in kafka.bootstrap_servers, or give the broker a certificate for this one (its ssl.keystore.location)"
            )
            return _Failed(Step.TLS, f"the broker's certificate is for another host: {reason}", remedy)
        if error.verify_code in (EXPIRED, NOT_YET_VALID):
            remedy = "renew the broker's certificate (its ssl.keystore.location), or set the clock of this machine"
            return _Failed(Step.TLS, f"the broker's certificate is out of date: {reason}", remedy)
        return _Failed(Step.TLS, f"the broker's certificate is refused: {reason}", "check it and kafka.ssl_cafile")

    def _alerted(self, error: ssl.SSLError) -> _Failed:
        """The broker ended TLS itself: nearly always over our certificate, or for the lack of it."""
        alert = (error.reason or "").partition("ALERT_")[2].lower().replace("_", " ")
        if alert == "protocol version":
            return _Failed(Step.TLS, "the broker speaks no TLS version from 1.2 on", "set its ssl.enabled.protocols")
        return self._refuses_certificate(f"TLS alert: {alert}")

    def _refuses_certificate(self, said: str, *, may_pass: bool = False) -> _Failed:
        if self._kafka.ssl_certfile is None:
            why = f"the broker ended TLS ({said}); it seems to ask for a client certificate"
            return _Failed(Step.TLS, why, "set kafka.ssl_certfile and kafka.ssl_keyfile", may_pass=may_pass)
        why = f"the broker refused the client certificate ({said})"
        remedy = "set kafka.ssl_certfile to one that is in date and signed by an authority in the broker's ssl.truststore.location"
        return _Failed(Step.TLS, why, remedy, may_pass=may_pass)

    def _greet(self, link: _Link, sock: socket.socket) -> None:
        """The first exchange. In TLS 1.3 it is also where a refused client certificate shows: the handshake ends before the broker looks at it."""
        try:
            link.greet()
        except TimeoutError:
            self._tls_passed(sock)
            raise
        except OSError as error:
            if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
                raise self._alerted(error) from None
            if self._has_tls:
                raise self._refuses_certificate(_text(error), may_pass=True) from None
            self._refuse_other_protocol()
            raise
        except KafkaError:
            self._tls_passed(sock)
            self._refuse_other_protocol()
            raise
        self._tls_passed(sock)

    def _tls_passed(self, sock: socket.socket) -> None:
        if isinstance(sock, ssl.SSLSocket):
            self._passed(f"{sock.version()}, the broker's certificate is trusted", Step.KAFKA)

    def _refuse_other_protocol(self) -> None:
        """After no answer or a strange one: does the port speak TLS?"""
        if not self._has_tls and self._speaks_tls():
            why = f"this port speaks TLS, and kafka.security_protocol is {self._kafka.security_protocol}"
            remedy = "set kafka.security_protocol to SASL_SSL" if self._has_sasl else "set kafka.security_protocol to SSL, or to SASL_SSL to log in"
            raise _Failed(Step.TLS, why, remedy)

    def _authenticate(self, link: _Link) -> None:
        name = self._options["sasl_mechanism"]
        shaken = link.ask(SaslHandshakeRequest(mechanism=name), max_version=1)
        if shaken.error_code == UNSUPPORTED_MECHANISM:
            offered = ", ".join(shaken.mechanisms)
            raise _Failed(Step.SASL, f"the broker does not offer {name}", f"set kafka.sasl_mechanism to one that it offers: {offered}")
        if shaken.error_code == ILLEGAL_SASL_STATE:
            protocol = "SSL" if self._has_tls else "PLAINTEXT"
            raise _Failed(
                Step.SASL, "this listener takes no SASL", f"set kafka.security_protocol to {protocol}, or give the port of the SASL listener"
            )
        if shaken.error_code:
            raise _Failed(Step.SASL, f"the broker refused {name}: {for_code(shaken.error_code).__name__}", "see the broker's log", may_pass=True)
        mechanism = get_sasl_mechanism(name)(host=self._host, **self._options)
        while not mechanism.is_done():
            try:
                shown = mechanism.auth_bytes()
            except TokenError as error:
                raise _Failed(Step.SASL, error.why, error.remedy, may_pass=error.may_pass) from None
            except ConfigError as error:
                why, _, remedy = str(error).rpartition("; ")
                raise _Failed(Step.SASL, why, remedy, may_pass=True) from None
            answer = link.ask(SaslAuthenticateRequest(auth_bytes=shown))
            if answer.error_code:
                said = " ".join((answer.error_message or for_code(answer.error_code).__name__).split())[:200]
                raise _Failed(Step.SASL, f"the broker refused the login: {said}", self._credentials())
            try:
                mechanism.receive(answer.auth_bytes)
            except (ValueError, KeyError):
                raise _Failed(
                    Step.SASL, "the broker did not prove that it knows the password", "check that kafka.bootstrap_servers is yours"
                ) from None

    def _credentials(self) -> str:
        """The settings that a refused login may mean."""
        kafka = self._kafka
        if kafka.sasl_mechanism != "OAUTHBEARER":
            password = "kafka.sasl_password_file" if kafka.sasl_password_file else "kafka.sasl_password"
            return f"check kafka.sasl_username {kafka.sasl_username!r} and {password}"
        return f"check {'kafka.sasl_oauth_token_file' if kafka.sasl_oauth_token_file else 'kafka.sasl_oauth_client_id and its token'}"

    def _metadata(self, link: _Link) -> Any:
        """Brokers, and with `access` what the topics permit. The first request that a listener with SASL refuses to a client without."""
        topics = [MetadataRequest.MetadataRequestTopic(name=name) for name in self._kafka.topics.values()] if self._access else []
        request = MetadataRequest(topics=topics, allow_auto_topic_creation=False, include_topic_authorized_operations=True)
        try:
            return link.ask(request)
        except TimeoutError:
            raise
        except OSError as error:
            if self._has_sasl:
                raise
            protocol = "SASL_SSL" if self._has_tls else "SASL_PLAINTEXT"
            why = f"the broker ended the connection at the first request ({_text(error)}); it seems to ask for a login"
            remedy = f"set kafka.security_protocol to {protocol}, with kafka.sasl_mechanism and what it needs"
            raise _Failed(Step.SASL, why, remedy, may_pass=True) from None

    def _permissions(self, link: _Link, metadata: Any) -> str:
        """What `run` needs: to read frames as a member of the group, to write verdicts and dead letters."""
        answers = {topic.name: topic for topic in metadata.topics}
        missing = []
        for setting, name in self._kafka.topics.items():
            operation = READ if setting == "frames_topic" else WRITE
            code, permitted = answers[name].error_code, answers[name].authorized_operations
            if code == TOPIC_FORBIDDEN or (code == 0 and permitted is not None and operation not in permitted):
                verb = "Read" if operation == READ else "Write"
                why = f"{verb} on kafka.{setting} {name!r} is not permitted"
                raise _Failed(Step.ACL, why, f"have the broker permit {self._who()} Describe and {verb} on the topic, or name another one")
            if code == UNKNOWN_TOPIC:
                missing.append(name)
        coordinator = link.ask(FindCoordinatorRequest(key=self._kafka.group_id, key_type=0), max_version=3)  # later versions ask for several at once
        if coordinator.error_code == GROUP_FORBIDDEN:
            why = f"Read on kafka.group_id {self._kafka.group_id!r} is not permitted"
            raise _Failed(Step.ACL, why, f"have the broker permit {self._who()} Read on the group, or name another one")
        return "topics and group are permitted" + (f"; missing topics: {', '.join(missing)}" if missing else "")

    def _who(self) -> str:
        """Whom an ACL has to name."""
        if self._has_sasl and self._kafka.sasl_username:
            return f"User:{self._kafka.sasl_username}"
        if self._has_sasl:
            return "the subject of the token"
        return "the subject of kafka.ssl_certfile" if self._has_tls and self._kafka.ssl_certfile else "User:ANONYMOUS"

    def _speaks_tls(self) -> bool:
        """A second look at the port, with no belief in its certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with self._again() as plain, context.wrap_socket(plain):
                return True
        except OSError as error:
            return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")

    def _speaks_plain_kafka(self) -> bool:
        """A second look at the port, without TLS."""
        try:
            with self._again() as plain:
                _Link(plain, min(self._deadline, time.monotonic() + SECOND_LOOK_S)).greet()
                return True
        except (OSError, KafkaError):
            return False

    def _again(self) -> socket.socket:
        return socket.create_connection((self._host, self._port), timeout=min(SECOND_LOOK_S, _left(self._deadline)))


def _unusable_certificate(kafka: KafkaSettings, error: OSError) -> _Failed:
    """Which of certificate, key and passphrase is to blame: OpenSSL tells by its reason, in some builds no more than "PEM lib"."""
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    files = f"kafka.ssl_certfile {str(kafka.ssl_certfile)!r} with kafka.ssl_keyfile {str(kafka.ssl_keyfile)!r}"
    if reason == "KEY_VALUES_MISMATCH":
        return _Failed(Step.TLS, f"{files}: the key belongs to another certificate", "give the key of this certificate")
    return _Failed(Step.TLS, f"{files} cannot be used: {_text(error)}", "give PEM files, and kafka.ssl_password if the key is encrypted")


def _left(deadline: float) -> float:
    """Seconds, never zero: a socket would take that for not waiting at all."""
    return max(0.001, deadline - time.monotonic())


def _text(error: OSError) -> str:
    """Cause without the numbers around it."""
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return reason.lower().replace("_", " ") if reason else error.strerror or str(error) or type(error).__name__
