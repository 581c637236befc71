# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a VM that this process is: QEMU asks for each read, write and flush over the NBD protocol.

One thread serves all disks, one request after another, so that the order of requests is one for all disks together. The
protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

_GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 1 | 2)  # fixed newstyle, no padding of zeroes
_OPTION = struct.Struct(">8sII")
_ANSWER = struct.Struct(">QIII")
_ANSWER_MAGIC = 0x3E889045565A9
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _REP_INFO, _UNSUPPORTED, _UNKNOWN = 1, 3, 0x80000001, 0x80000006
_EXPORT = struct.Struct(">QH")
_FLAGS = 1 | 4 | 8 | 32 | 64  # flags are sent; flush, FUA, trim and write zeroes are known
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_FUA = 1
_EIO, _EINVAL = 5, 22
_POLL_SECONDS = 0.2


class Store(Protocol):
    """What is behind one disk; offsets and lengths in bytes. An `OSError` becomes an I/O error of the guest."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


class Server:
    """Serves ``stores`` by their names at a socket, while it is entered."""

    def __init__(self, path: Path, stores: Mapping[str, Store]) -> None:
        self.path = path
        self._stores = stores
        self._listener = socket.socket(socket.AF_UNIX)
        self._selector = selectors.DefaultSelector()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="nbd", daemon=True)
        self.error: BaseException | None = None

    def __enter__(self) -> "Server":
        self._listener.bind(str(self.path))
        self._listener.listen(len(self._stores))
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def cut(self) -> None:
        """End every connection, also one whose request is not answered yet."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._listener:
                with contextlib.suppress(OSError):
                    key.fileobj.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        try:
            while not self._ending.is_set():
                for key, _ in self._selector.select(_POLL_SECONDS):
                    if isinstance(key.fileobj, socket.socket):
                        self._attend(key.fileobj, key.data)
        except BaseException as err:
            self.error = err
            self._listener.close()
            raise

    def _attend(self, sock: socket.socket, store: Store | None) -> None:
        try:
            if sock is self._listener:
                client, _ = sock.accept()
                found = self._greet(client)
                if found is None:
                    client.close()
                else:
                    self._selector.register(client, selectors.EVENT_READ, found)
                return
            if store is not None and _request(sock, store):
                return
        except (ConnectionError, EOFError):
            pass
        if sock is not self._listener:
            self._selector.unregister(sock)
            sock.close()

    def _greet(self, sock: socket.socket) -> Store | None:
        """The store that the client chose, None if it went away."""
        sock.sendall(_GREETING)
        _exactly(sock, 4)
        while True:
            _, option, length = _OPTION.unpack(_exactly(sock, _OPTION.size))
            data = _exactly(sock, length)
            if option == _EXPORT_NAME:
                store = self._stores[data.decode()]
                sock.sendall(_EXPORT.pack(store.size, _FLAGS))
                return store
            if option in (_INFO, _GO):
                (size,) = struct.unpack_from(">I", data)
                named = self._stores.get(data[4 : 4 + size].decode())
                if named is None:
                    _answer(sock, option, _UNKNOWN)
                    continue
                _answer(sock, option, _REP_INFO, struct.pack(">H", 0) + _EXPORT.pack(named.size, _FLAGS))
                _answer(sock, option, _ACK)
                if option == _GO:
                    return named
            elif option == _ABORT:
                _answer(sock, option, _ACK)
                return None
            else:
                _answer(sock, option, _UNSUPPORTED)


def _answer(sock: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
    sock.sendall(_ANSWER.pack(_ANSWER_MAGIC, option, kind, len(data)) + data)


def _request(sock: socket.socket, store: Store) -> bool:
    """Serve one request; False when the client says goodbye."""
    magic, flags, kind, cookie, offset, length = _REQUEST.unpack(_exactly(sock, _REQUEST.size))
    if magic != _REQUEST_MAGIC:
        raise ConnectionError("no request")
    if kind == _DISCONNECT:
        return False
    data = _exactly(sock, length) if kind == _WRITE else b""
    error, found = 0, b""
    try:
        if kind == _READ:
            found = store.read(offset, length)
        elif kind in (_WRITE, _TRIM, _WRITE_ZEROES):
            store.write(offset, data if kind == _WRITE else bytes(length))
            if flags & _FUA:
                store.flush()
        elif kind == _FLUSH:
            store.flush()
        else:
            error = _EINVAL
    except OSError as err:
        error = err.errno or _EIO
    sock.sendall(_REPLY.pack(_REPLY_MAGIC, error, cookie) + found)
    return True


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    with memoryview(data) as view:
        done = 0
        while done < length:
            count = sock.recv_into(view[done:])
            if not count:
                raise EOFError
            done += count
    return bytes(data)
