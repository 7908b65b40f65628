// Package intake takes events from an SQS queue and hands each to whoever makes
// cases of them. It exists so that no finding is lost: a message is deleted only
// after its case is durable, and one that can't be read ends in the dead-letter
// queue and holds nothing else up.
//
// The queue needs a redrive policy; with a maxReceiveCount of 10, an event that
// is refused for other reasons than its own shape keeps coming back for at least
// 25 minutes. Delivery is at least once: a Taker must take the same event twice
// without harm.
package intake
