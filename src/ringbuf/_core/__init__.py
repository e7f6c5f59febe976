"""What everything stands on: memory orders, time, sleeping and waking, pages."""
