"""What every other room stands on: errors, events, and checks of what comes from outside."""
