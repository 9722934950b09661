"""Invoices and orders: the records of billing.ledger, their fold in memory, and the thread that follows the log."""
