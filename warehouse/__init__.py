"""What services share about ClickHouse: connection, migrations, epochs, coverage, exact totals and usage queries."""
