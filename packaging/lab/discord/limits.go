package discord

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of a message, in characters. Source: Discord developer
// documentation, "Execute Webhook" and "Embed Limits".
const (
	maxContent     = 2000
	maxEmbeds      = 10
	maxTitle       = 256
	maxDescription = 4096
	maxFields      = 25
	maxName        = 256
	maxValue       = 1024
	maxFooter      = 2048
	maxTotal       = 6000 // titles, descriptions, fields, footers and authors of all embeds
	maxColour      = 0xFFFFFF
)

// Discord's codes of errors. Source: Discord developer documentation, "JSON
// Error Codes".
const (
	codeEmpty          = 50006 // cannot send an empty message
	codeToken          = 50027 // invalid webhook token
	codeForm           = 50035 // invalid form body
	codeJSON           = 50109 // the request body contains invalid JSON
	codeUnknownWebhook = 10015
)

// refusal is why a message is not taken, as Discord says it.
type refusal struct {
	Message string              `json:"message"`
	Code    int                 `json:"code"`
	Errors  map[string][]string `json:"errors,omitempty"`
}

// inspection counts a message's characters and collects what is wrong.
type inspection struct {
	total  int
	errors map[string][]string
}

// inspect gives why a message is refused, nil where it is taken.
func inspect(m Message) *refusal {
	i := inspection{errors: map[string][]string{}}
	i.text("content", m.Content, maxContent)
	i.count("embeds", len(m.Embeds), maxEmbeds)
	i.total = 0 // of embeds alone
	for n, e := range m.Embeds {
		i.embed(fmt.Sprintf("embeds.%d", n), e)
	}
	i.count("embeds, all text", i.total, maxTotal)
	if len(i.errors) > 0 {
		return &refusal{Message: "Invalid Form Body", Code: codeForm, Errors: i.errors}
	}
	if blank(m.Content) && i.total == 0 {
		return &refusal{Message: "Cannot send an empty message", Code: codeEmpty}
	}
	return nil
}

func (i *inspection) embed(at string, e Embed) {
	i.text(at+".title", e.Title, maxTitle)
	i.text(at+".description", e.Description, maxDescription)
	i.text(at+".author.name", e.Author.Name, maxName)
	i.text(at+".footer.text", e.Footer.Text, maxFooter)
	i.count(at+".fields", len(e.Fields), maxFields)
	for n, f := range e.Fields {
		at := fmt.Sprintf("%s.fields.%d", at, n)
		i.required(at+".name", f.Name, maxName)
		i.required(at+".value", f.Value, maxValue)
	}
	if e.Color < 0 || e.Color > maxColour {
		i.wrong(at+".color", fmt.Sprintf("must be from 0 to %d", maxColour))
	}
	if e.URL != "" && !strings.HasPrefix(e.URL, "https://") && !strings.HasPrefix(e.URL, "http://") {
		i.wrong(at+".url", "scheme must be one of ('http', 'https')")
	}
}

func (i *inspection) required(at, text string, most int) {
	if blank(text) {
		i.wrong(at, "this field is required")
	}
	i.text(at, text, most)
}

func (i *inspection) text(at, text string, most int) {
	n := utf8.RuneCountInString(text)
	i.total += n
	i.count(at, n, most)
}

func (i *inspection) count(at string, n, most int) {
	if n > most {
		i.wrong(at, fmt.Sprintf("%d, must be %d or fewer in length", n, most))
	}
}

func (i *inspection) wrong(at, why string) { i.errors[at] = append(i.errors[at], why) }

// blank reports whether nothing would be seen of a text.
func blank(text string) bool { return strings.TrimSpace(text) == "" }
