package com.example;

public class App {
    public static void main(String[] arguments) {
        System.out.println("hello from java " + Runtime.version().feature());
    }
}
