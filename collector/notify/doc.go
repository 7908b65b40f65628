// Package notify tells people about a case, through a Discord webhook. It exists
// as its own package because much of what it sends was written by an attacker
// (host names, tags, file names), and the webhook's address is itself a secret.
package notify
