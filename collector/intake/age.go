package intake

import (
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// oldest is the age of the message that was sent before all others, 0 where
// there is none. SQS gives the time of sending in milliseconds since 1970, of
// its own clock. Source: Amazon SQS API Reference, ReceiveMessage,
// "SentTimestamp".
func oldest(messages []types.Message, now time.Time) (age time.Duration) {
	for _, m := range messages {
		sent, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64)
		if err == nil && sent > 0 {
			age = max(age, now.Sub(time.UnixMilli(sent)))
		}
	}
	return age
}
