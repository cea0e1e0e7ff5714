"""What a message of an error must be, whatever it is about."""


def check_message(error: Exception) -> None:
    """One line that any terminal shows, and not a screenful."""
    message = str(error)
    assert message, repr(error)
    assert message.isprintable(), message
    assert len(message) < 4000, message
