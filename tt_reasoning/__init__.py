"""Sample many answers to a question, then get more out of them: a torchtune recipe pack."""

__version__ = "0.1.0"
