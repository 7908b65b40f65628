package emulator_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/quicklime-ir/quicklime/packaging/lab/emulator"
)

type attributes = map[string]types.MessageAttributeValue

func attribute(kind, value string) types.MessageAttributeValue {
	return types.MessageAttributeValue{DataType: &kind, StringValue: &value}
}

func (l *lab) send(t *testing.T, url, body string, own attributes) (*sqs.SendMessageOutput, error) {
	t.Helper()
	return l.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: &url, MessageBody: &body, MessageAttributes: own})
}

func (l *lab) letters(t *testing.T, names ...string) []types.Message {
	t.Helper()
	out, err := l.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: aws.String(l.DeadLetterURL()), MaxNumberOfMessages: 10, MessageAttributeNames: names})
	if err != nil {
		t.Fatal(err)
	}
	return out.Messages
}

func TestAMessageKeepsItsAttributes(t *testing.T) {
	all := attributes{"lab.reason": attribute("String", "why <ü>"), "lab.receives": attribute("Number.int", "3"), "other": attribute("String", "x")}
	lab2 := attributes{"lab.reason": all["lab.reason"], "lab.receives": all["lab.receives"]}
	for _, c := range []struct {
		name string
		ask  []string
		want attributes
	}{
		{"none is asked for", nil, nil},
		{"by name", []string{"lab.reason", "no such one"}, attributes{"lab.reason": all["lab.reason"]}},
		{"by prefix", []string{"lab.*"}, lab2},
		{"all", []string{"All"}, all},
		{"all, in another way", []string{".*"}, all},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := start(t, nil)
			if _, err := l.send(t, l.DeadLetterURL(), "body", all); err != nil {
				t.Fatal(err)
			}
			got := l.letters(t, c.ask...)
			if len(got) != 1 {
				t.Fatalf("%d messages", len(got))
			}
			if diff := cmp.Diff(c.want, got[0].MessageAttributes, cmpopts.IgnoreUnexported(types.MessageAttributeValue{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The sums are other programs' of the same attributes.
func TestTheSumOfAttributes(t *testing.T) {
	l := start(t, nil)
	for want, own := range map[string]attributes{
		"cd28f3b68aeee4b2eac9c66f2f694b58": {"SellerName": attribute("String", "Example Store")},
		"d21ae90c49061e927f57df5f5d72be1f": {"ordinal": attribute("Number", "1"), "category": attribute("String", "test")},
	} {
		out, err := l.send(t, l.QueueURL(), "body", own)
		if err != nil || aws.ToString(out.MD5OfMessageAttributes) != want {
			t.Errorf("%v, %v; want %s", out, err, want)
		}
	}
}

func TestWhatAttributesSQSRefuses(t *testing.T) {
	l := start(t, nil)
	many := attributes{}
	for n := range 11 {
		many["a"+strconv.Itoa(n)] = attribute("String", "x")
	}
	one := func(name, kind, value string) attributes { return attributes{name: attribute(kind, value)} }
	for _, c := range []struct {
		name, want string
		own        attributes
		body       string
	}{
		{"eleven", "InvalidParameterValue", many, "b"},
		{"a space in the name", "InvalidParameterValue", one("a b", "String", "x"), "b"},
		{"a long name", "InvalidParameterValue", one(strings.Repeat("a", 257), "String", "x"), "b"},
		{"a name that begins with a dot", "InvalidParameterValue", one(".a", "String", "x"), "b"},
		{"a name that ends with a dot", "InvalidParameterValue", one("a.", "String", "x"), "b"},
		{"two dots", "InvalidParameterValue", one("a..b", "String", "x"), "b"},
		{"a name of AWS's", "InvalidParameterValue", one("aWs.reason", "String", "x"), "b"},
		{"a name of Amazon's", "InvalidParameterValue", one("Amazon.reason", "String", "x"), "b"},
		{"no type", "InvalidParameterValue", one("a", "", "x"), "b"},
		{"an unknown type", "InvalidParameterValue", one("a", "Text", "x"), "b"},
		{"an empty value", "InvalidParameterValue", one("a", "String", ""), "b"},
		{"no number", "InvalidParameterValue", one("a", "Number", "three"), "b"},
		{"bytes that no message may have", "InvalidMessageContents", one("a", "String", "\x1b[31m"), "b"},
		{"with the body too long", "InvalidParameterValue", one("a", "String", "x"), strings.Repeat("b", 1<<20-7)},
		{"with the body just short enough", "", one("a", "String", "x"), strings.Repeat("b", 1<<20-8)},
	} {
		if _, err := l.send(t, l.QueueURL(), c.body, c.own); codeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	binary := attributes{"a": {DataType: aws.String("Binary"), BinaryValue: []byte("x")}}
	if _, err := l.send(t, l.QueueURL(), "b", binary); codeOf(err) != "UnknownParameter" {
		t.Errorf("a binary value, which the lab does not know: %v", err)
	}
}

func TestAQueueIsFoundByItsName(t *testing.T) {
	l := start(t, nil)
	name := func(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }
	for _, c := range []struct {
		name, owner, want, code string
	}{
		{name(l.QueueURL()), "", l.QueueURL(), ""},
		{name(l.DeadLetterURL()), account, l.DeadLetterURL(), ""},
		{name(l.QueueURL()), "999999999999", "", "QueueDoesNotExist"},
		{"nothing", "", "", "QueueDoesNotExist"},
		{"no/name", "", "", "InvalidParameterValue"},
		{strings.Repeat("a", 81), "", "", "InvalidParameterValue"},
	} {
		in := &sqs.GetQueueUrlInput{QueueName: aws.String(c.name)}
		if c.owner != "" {
			in.QueueOwnerAWSAccountId = &c.owner
		}
		out, err := l.sqs.GetQueueUrl(t.Context(), in)
		if codeOf(err) != c.code || err == nil && *out.QueueUrl != c.want {
			t.Errorf("%s of %q: %v, %v; want %s %s", c.name, c.owner, out, err, c.want, c.code)
		}
	}
}

// TestFaultsOfADeadLetter: what is refused is not sent; of what is sent, the
// answer may be lost.
func TestFaultsOfADeadLetter(t *testing.T) {
	for _, c := range []struct {
		kind emulator.FaultKind
		code string
		sent int
	}{
		{emulator.Throttle, "ThrottlingException", 0},
		{emulator.Unavailable, "ServiceUnavailable", 0},
		{emulator.LostReply, "cut", 1},
	} {
		l := start(t, nil)
		l.Inject(emulator.Fault{Service: "sqs", Action: "SendMessage", Kind: c.kind})
		if _, err := l.send(t, l.DeadLetterURL(), "b", nil); codeOf(err) != c.code {
			t.Errorf("%v, want %s", err, c.code)
		}
		if n := len(l.State().Queue.DeadLetters); n != c.sent {
			t.Errorf("%s: %d messages were sent, want %d", c.code, n, c.sent)
		}
	}
}
