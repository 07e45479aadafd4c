package sallyport_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/sallyport/sallyport"
)

func ExampleParseSequence() {
	knock, err := sallyport.ParseSequence("7000/tcp 8500/udp 37/icmp")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(knock.Steps)

	_, err = sallyport.ParseSequence("7000/tcp 8500")
	fmt.Println(err)
	// Output:
	// [7000/tcp 8500/udp 37/icmp]
	// "8500" is not a step: write it as 7000/tcp, 8500/udp, icmp or 37/icmp
}

// A hidden SSH server greets whoever knocked.
func ExampleDialer() {
	knock, err := sallyport.ParseSequence("7000/tcp 8500/udp 7800/tcp")
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

// A server whose owner handed out its address, and who has our public key in
// his authorized_keys.
func ExampleRequest() {
	server, err := sallyport.ParseAddress(os.Getenv("SERVER_ADDRESS"))
	if err != nil {
		log.Fatal(err)
	}
	key, err := sallyport.LoadKey(os.Getenv("HOME")+"/.ssh/id_ed25519", nil)
	if err != nil {
		log.Fatal(err)
	}
	dialer := sallyport.Dialer{Knock: &sallyport.Request{Server: server, Signer: key, Services: []string{"ssh"}}}
	conn, err := dialer.DialContext(context.Background(), "tcp", "example.net:22")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	io.CopyN(os.Stdout, conn, 8)
}

// A hardware key in ssh-agent signs when somebody touches it.
func ExampleAgentKeys() {
	keys, err := sallyport.AgentKeys()
	if err != nil {
		log.Fatal(err)
	}
	for _, key := range keys {
		fmt.Printf("%s %q\n", key.Fingerprint, key.Comment)
	}
}

func ExampleParseAddress() {
	_, err := sallyport.ParseAddress("example.net")
	fmt.Println(err)
	address, err := sallyport.ParseAddress("sallyport1AR62eWA0ZUBM4KhL33EIQJOR9m9tKMeceNh1_Pmx6AVUqjZ3hrxI2cObxNSGLT0CC0YWB72fkNTE7kCDB1gAeD0dIhPk")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(address.Suite())
	// Output:
	// this is not a server's address, which begins with sallyport1 and comes from 'sallyport keygen --out' or 'sallyport invite': another beginning
	// classic
}

// What would be sent, without sending it.
func ExampleSequence_Plan() {
	sequence, err := sallyport.ParseSequence("7000/tcp 8500/udp")
	if err != nil {
		log.Fatal(err)
	}
	plan, err := sequence.Plan(netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(plan)
	// Output:
	// to 2001:db8::2 from 2001:db8::1:
	//   tcp port 7000, 0 bytes
	//   udp port 8500, 8 bytes, after 20ms
}

// A hidden web server, through the standard HTTP client.
func ExampleDialer_DialContext() {
	knock, err := sallyport.ParseSequence("7000/tcp 8500/udp 7800/tcp")
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
