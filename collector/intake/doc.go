// Package intake takes events from an SQS queue, or from a webhook, and hands
// each to whoever makes cases of them. It exists so that no finding is lost: a message is deleted only
// after its case is durable, and one that can't be read is deleted only after
// the dead-letter queue has it, with the reason, and holds nothing else up.
//
// The queue needs a redrive policy; with a maxReceiveCount of 10, an event that
// is refused for other reasons than its own shape keeps coming back for at least
// 25 minutes. Delivery is at least once, into the dead-letter queue too: a Taker
// must take the same event twice without harm.
package intake
