package bucket

import (
	"io"
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v3"
)

// encryption begins the names of all that asks for encryption at rest.
// Source: Amazon S3 API Reference, PutObject.
const encryption = "x-amz-server-side-encryption"

// readToEnd reads what is left of a refused request's body. versitygw reads
// 256 KiB of it and cuts the connection, so that a sender of more would not
// see why it was refused. A part has 5 GiB at most.
func readToEnd(c fiber.Ctx) error {
	err := c.Next()
	body := c.Request().BodyStream()
	if body != nil && c.Request().Header.ContentLength() > 0 { // a chunked one has no end to be read twice
		_, _ = io.Copy(io.Discard, body) // the sender has gone
	}
	return err
}

// refuseEncryption answers 501 where encryption is asked for: versitygw would
// say 200 and store plain text.
func refuseEncryption(c fiber.Ctx) error {
	asked := false
	look := func(name, _ []byte) { asked = asked || strings.HasPrefix(strings.ToLower(string(name)), encryption) }
	for name, value := range c.Request().Header.All() {
		look(name, value)
	}
	for name, value := range c.RequestCtx().QueryArgs().All() { // a presigned URL may ask too
		look(name, value)
	}
	if !asked {
		return c.Next()
	}
	c.Set(fiber.HeaderContentType, "application/xml")
	return c.Status(http.StatusNotImplemented).SendString(document("NotImplemented", "The lab has no encryption at rest."))
}

// document is an error as S3 words it. Source: Amazon S3 API Reference,
// "REST error responses". The texts are the lab's own.
func document(code, message string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>` + "\n<Error><Code>" + code + "</Code><Message>" + message + "</Message></Error>"
}
