"""From a conversation to a streamed reply: context, specialist, rollout."""
