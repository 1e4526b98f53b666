"""What people use Hansard with: a connection, turns followed through restarts, commands."""
