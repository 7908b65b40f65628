package notify

import (
	"encoding/json"
	"fmt"
	"net/url"
)

// Limits of an embed, in characters. Source: Discord's developer documentation,
// "Embed Limits".
const (
	maxTitle  = 256
	maxBody   = 4096
	maxFields = 25
	maxName   = 256
	maxValue  = 1024
	maxTotal  = 6000
	maxURL    = 2048
	nothing   = "(empty)" // Discord refuses an empty name or value
)

type payload struct {
	Embeds          []embed  `json:"embeds"`
	AllowedMentions mentions `json:"allowed_mentions"`
}

// mentions with an empty list forbids every ping, whatever the text holds.
type mentions struct {
	Parse []string `json:"parse"`
}

type embed struct {
	Title       string       `json:"title"`
	Description string       `json:"description,omitempty"`
	URL         string       `json:"url,omitempty"`
	Color       int          `json:"color,omitempty"`
	Fields      []embedField `json:"fields,omitempty"`
}

type embedField struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Inline bool   `json:"inline"`
}

// render turns m into the JSON that the webhook takes. Everything goes into an
// embed and nothing into the content, where Discord would resolve invitations
// and unfurl links.
func render(m Message) ([]byte, error) {
	e := embed{
		Title:       or(escapeLine(m.Title, maxTitle), nothing),
		Description: escape(m.Body, maxBody),
		URL:         link(m.URL),
		Color:       m.Colour & 0xFFFFFF,
	}
	e.Fields = fields(m.Fields, maxTotal-units(e.Title)-units(e.Description))
	return json.Marshal(payload{Embeds: []embed{e}, AllowedMentions: mentions{Parse: []string{}}})
}

// fields renders as many fields as fit into room characters; where some do not,
// the last one says how many.
func fields(in []Field, room int) []embedField {
	const tail = 64 // kept free for the last one
	var out []embedField
	for i, f := range in {
		ef := embedField{or(escapeLine(f.Name, maxName), nothing), or(escape(f.Value, maxValue), nothing), f.Inline}
		size := units(ef.Name) + units(ef.Value)
		last := i == len(in)-1
		if len(out) == maxFields-1 && !last || size > room-tail && !(last && size <= room) {
			return append(out, embedField{Name: ellipsis, Value: fmt.Sprintf("%d more, see the case", len(in)-i)})
		}
		out = append(out, ef)
		room -= size
	}
	return out
}

// link lets an absolute http or https URL through.
func link(s string) string {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURL || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return ""
	}
	return u.String()
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
