// Package mail sends letters through an SMTP server.
package mail

import (
	"context"
	"net/url"
	"strconv"

	gomail "github.com/wneessen/go-mail"

	"github.com/boughdb/bough/internal/core"
)

// Sender sends through one server, with a connection for each letter.
type Sender struct {
	host string
	from string
	opts []gomail.Option
}

// New reads smtp://[user:password@]host[:port] (TLS when the server offers it; without TLS no password is sent) or
// smtps://… (TLS from the start), and the sender's address.
func New(smtpURL, from string) (*Sender, error) {
	u, err := url.Parse(smtpURL)
	if err != nil || (u.Scheme != "smtp" && u.Scheme != "smtps") || u.Hostname() == "" {
		return nil, core.Invalidf("--smtp-url must look like smtp://user:password@host:587 or smtps://user:password@host:465")
	}
	if err := gomail.NewMsg().From(from); err != nil {
		return nil, core.Invalidf("--smtp-from must be an e-mail address")
	}
	s := &Sender{host: u.Hostname(), from: from, opts: []gomail.Option{gomail.WithTLSPortPolicy(gomail.TLSOpportunistic)}}
	port := 587
	if u.Scheme == "smtps" {
		port = 465
		s.opts = []gomail.Option{gomail.WithSSL()}
	}
	if u.Port() != "" {
		if port, err = strconv.Atoi(u.Port()); err != nil || port > 65535 {
			return nil, core.Invalidf("--smtp-url: %q is not a port", u.Port())
		}
	}
	s.opts = append(s.opts, gomail.WithPort(port))
	if u.User != nil {
		password, _ := u.User.Password()
		s.opts = append(s.opts, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(u.User.Username()), gomail.WithPassword(password))
	}
	return s, nil
}

// Send returns when the server has taken the letter.
func (s *Sender) Send(ctx context.Context, to, subject, text string) error {
	m := gomail.NewMsg()
	if err := m.From(s.from); err != nil {
		return core.Wrap(err, "mail.from", "")
	}
	if err := m.To(to); err != nil {
		return core.Wrap(err, "mail.to", "")
	}
	m.Subject(subject)
	m.SetBodyString(gomail.TypeTextPlain, text)
	client, err := gomail.NewClient(s.host, s.opts...)
	if err != nil {
		return core.Wrap(err, "mail.client", "")
	}
	return core.Wrap(client.DialAndSendWithContext(ctx, m), "mail.send", "does the SMTP server of --smtp-url answer, and does it take the sender of --smtp-from?")
}
