"""Where the workers of a cluster leave messages for the process that started them."""


class Board:
    """Keeps pickled messages until they are collected.

    It lives as an actor in a process of its own, which stays small: it imports nothing, and does
    not look into the messages, whose classes would bring torch along.
    """

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def post(self, message: bytes) -> None:
        """Leave a message."""
        self.messages.append(message)

    def collect(self) -> list[bytes]:
        """The messages since the last call."""
        collected, self.messages = self.messages, []
        return collected
