package sallyport_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/sallyport/sallyport"
)

func ExampleParseKnock() {
	knock, err := sallyport.ParseKnock("7000/tcp 8500/udp 37/icmp")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(knock.Steps)

	_, err = sallyport.ParseKnock("7000/tcp 8500")
	fmt.Println(err)
	// Output:
	// [7000/tcp 8500/udp 37/icmp]
	// "8500" is not a step: write it as 7000/tcp, 8500/udp, icmp or 37/icmp
}

// A hidden SSH server greets whoever knocked.
func ExampleDialer() {
	knock, err := sallyport.ParseKnock("7000/tcp 8500/udp 7800/tcp")
	if err != nil {
		log.Fatal(err)
	}
	dialer := sallyport.Dialer{Knock: knock, Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(context.Background(), "tcp", "example.net:22")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	io.CopyN(os.Stdout, conn, 8)
}

// A hidden web server, through the standard HTTP client.
func ExampleDialer_DialContext() {
	knock, err := sallyport.ParseKnock("7000/tcp 8500/udp 7800/tcp")
	if err != nil {
		log.Fatal(err)
	}
	dialer := sallyport.Dialer{Knock: knock}
	client := http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	reply, err := client.Get("https://example.net/")
	if err != nil {
		log.Fatal(err)
	}
	reply.Body.Close()
}
