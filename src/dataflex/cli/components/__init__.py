"""Commands about components: list, describe, new."""
